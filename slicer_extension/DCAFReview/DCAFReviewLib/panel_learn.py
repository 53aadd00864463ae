"""Training on the readers' labels: start, progress, validation curve, the gate's verdict, what changed."""

from __future__ import annotations

RUNNING = ("running", "ranking")
TITLES = {"idle": "Nothing is being trained.", "running": "Training", "ranking": "Ranking the pool again",
          "published": "Published", "refused": "Not published", "failed": "Failed", "stopped": "Stopped"}


class LearnPanel:
    """Shows `Session.training`; readers with the admin role may start and stop it.

    Args:
        ui: The module's widgets.
        session: The session.
        logic: Where the curve is plotted.
    """

    def __init__(self, ui, session, logic) -> None:
        self._ui = ui
        self._session = session
        self._logic = logic
        ui.trainButton.connect("clicked()", lambda: session.train(ui.modeBox.currentText))
        ui.stopButton.connect("clicked()", session.stop_training)
        ui.curveCheck.connect("toggled(bool)", self._arrange)

    def show_training(self) -> None:
        """How training stands."""
        ui, training, connection = self._ui, self._session.training, self._session.connection
        running = training.state in RUNNING
        may = connection.state == "on" and connection.role == "admin"
        ui.trainButton.enabled = may and not running
        ui.stopButton.enabled = may and running
        ui.modeBox.enabled = may and not running
        ui.trainButton.toolTip = "" if may else "Needs a token with the admin role."
        ui.trainingBar.setVisible(running)
        ui.trainingBar.maximum = max(training.total or 0, 0)
        ui.trainingBar.value = min(training.done or 0, training.total or 0)
        ui.trainingLabel.text = verdict(training)
        ui.changesLabel.text = changes(training.changes, dict(connection.classes))
        ui.changesLabel.setVisible(bool(ui.changesLabel.text))
        if ui.curveCheck.checked and training.curve:
            self._logic.plot(training.curve)

    def _arrange(self, curve: bool) -> None:
        self._logic.arrange(curve=curve)
        if curve and self._session.training.curve:
            self._logic.plot(self._session.training.curve)


def verdict(training) -> str:
    """The state of a training, with the gate's figures once there are any."""
    title = TITLES.get(training.state, training.state)
    if training.state == "idle":
        return title
    told = training.message   # the gate's own words tell verdict and figures already
    text = told if told.startswith(title) else f"{title}: {told}"
    if training.candidate_nll is not None and training.published_nll is not None and "NLL" not in told:
        text += (f" (validation NLL {training.candidate_nll:.3f}, "
                 f"in place before {training.published_nll:.3f})")
    if training.curve:
        last = training.curve[-1]
        text += f"\nEpoch {last['epoch']}: validation NLL {last['validation_nll']:.3f}"
    return text


def changes(told, titles: dict) -> str:
    """What the new model sees otherwise; empty before anything was compared."""
    if not told:
        return ""
    lines = [f"{told['answers_changed']} of {told['compared']} answers changed; mean entropy "
             f"{told['mean_entropy_before']:.2f} before, {told['mean_entropy_after']:.2f} now."]
    for item in told["items"][:5]:
        before, after = (titles.get(item[key], item[key]) for key in ("label_before", "label_after"))
        answer = before if before == after else f"{before} \u2192 {after}"
        lines.append(f"\u2026{item['uid'][-8:]}: {answer}, entropy {item['entropy_before']:.2f} \u2192 "
                     f"{item['entropy_after']:.2f}")
    return "\n".join(lines)
