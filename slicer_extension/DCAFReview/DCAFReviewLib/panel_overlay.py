"""The overlay: which map, of which class, how it is coloured, and from where on it is drawn at all."""

from __future__ import annotations

MAPS = {"class_activation": ("Class activation", "logit per cell"),
        "attention_first": ("Attention, first trunk", "1 = even"),
        "attention_second": ("Attention, second trunk", "1 = even"),
        "gate": ("Gate", "share, second trunk"), "spatial": ("Spatial attention", "weight")}
"""Title and, for the legend, unit of each map; the whole sentence about the unit is the server's."""
UNFAITHFUL = "(fails the randomisation test)"
"""Beside a map that looks alike when the network's weights are made random: it tells of the image, not of
what the model has learned."""
FIRST = 0.1
"""Share of the scale from which a map is drawn, until the reader says otherwise ..."""
NEUTRAL = {"attention_first": 1.0, "attention_second": 1.0, "gate": 0.5, "spatial": 0.5}
"""... but for maps that say nothing at some value, in their own unit: from there, or the whole picture would
be coloured."""


class OverlayPanel:
    """Shows the open case's heat as the reader wants it and asks for another one.

    Args:
        ui: The module's widgets.
        session: The session.
        logic: Draws on the scene.
    """

    def __init__(self, ui, session, logic) -> None:
        self._ui = ui
        self._session = session
        self._logic = logic
        self._drawn = False
        self._setting = False
        self._thresholds: dict = {}
        ui.mapBox.connect("currentIndexChanged(int)", self._ask)
        ui.explainBox.connect("currentIndexChanged(int)", self._ask)
        ui.overlayCheck.connect("toggled(bool)", self._ask)
        ui.opacitySlider.connect("valueChanged(double)", lambda _: self._look())
        ui.thresholdSlider.connect("valueChanged(double)", self._threshold)
        ui.colourBox.connect("currentIndexChanged(int)", lambda _: self._look())
        ui.legendCheck.connect("toggled(bool)", lambda _: self._look())

    def show_connection(self) -> None:
        """Offers the maps of the server that answers; the chosen one stays chosen where it has it."""
        box, connection = self._ui.mapBox, self._session.connection
        chosen = box.itemData(box.currentIndex)
        blocked = box.blockSignals(True)
        box.clear()
        for kind in connection.maps:
            title = MAPS.get(kind, (kind, ""))[0]
            box.addItem(f"{title} {UNFAITHFUL}" if kind in connection.unfaithful else title, kind)
        box.setCurrentIndex(max(box.findData(chosen), 0))
        box.blockSignals(blocked)

    def show_case(self) -> None:
        """Offers the classes of the case's answer, the most probable first."""
        box, case = self._ui.explainBox, self._session.case
        document = case.document if case is not None else None
        classes = [answer["label"] for answer in document["prediction"]] if document else []
        if [box.itemData(place) for place in range(box.count)] != classes:
            titles = dict(self._session.connection.classes)
            blocked = box.blockSignals(True)
            box.clear()
            for label in classes:
                box.addItem(titles.get(label, label), label)
            box.blockSignals(blocked)

    def show_heat(self, drawn: bool) -> None:
        """Draws the case's heat, or takes it away.

        Args:
            drawn: Whether the case's picture is there to be drawn over.
        """
        ui, case = self._ui, self._session.case
        self._drawn = drawn
        ui.mapLabel.text = case.map_note if case is not None and case.revealed else ""
        if not self._seen() or not drawn:
            self._logic.hide_heat()
            return
        fields = case.heat.fields
        title, unit = MAPS.get(case.map_kind, (case.map_kind, ""))
        self._start(case.map_kind, float(fields["scale"]))
        self._look()
        self._logic.show_heat(case.heat, scale=float(fields["scale"]), unit=unit, title=title)
        ui.mapLabel.text = case.map_note or fields["unit"]

    def toggle(self) -> None:
        """The overlay on, or off."""
        self._ui.overlayCheck.toggle()

    def next_map(self) -> None:
        """The next map of the list, after the last the first."""
        box = self._ui.mapBox
        if box.count:
            box.setCurrentIndex((box.currentIndex + 1) % box.count)

    def _seen(self) -> bool:
        case = self._session.case
        return bool(case is not None and case.heat is not None and case.revealed
                    and self._ui.overlayCheck.checked)

    def _ask(self, _=None) -> None:
        ui, case = self._ui, self._session.case
        if case is None or not case.revealed:
            return
        if ui.overlayCheck.checked and ui.mapBox.count:
            kind = ui.mapBox.itemData(ui.mapBox.currentIndex)
            explains = kind == "class_activation"
            ui.explainBox.enabled = explains
            target = ui.explainBox.itemData(ui.explainBox.currentIndex) if explains else None
            self._session.ask_map(kind, target)
        self.show_heat(self._drawn)

    def _start(self, kind: str, scale: float) -> None:
        """Sets the threshold that this kind of map had last, or starts with."""
        slider = self._ui.thresholdSlider
        first = min(NEUTRAL[kind] / scale, slider.maximum) if kind in NEUTRAL else FIRST
        self._setting = True
        slider.value = self._thresholds.get(kind, round(first, 2))
        self._setting = False

    def _threshold(self, share: float) -> None:
        case = self._session.case
        if not self._setting and case is not None and case.map_kind:
            self._thresholds[case.map_kind] = share
        self._look()

    def _look(self) -> None:
        ui = self._ui
        if not ui.colourBox.currentText:    # Slicer refills the box while it binds the parameter node
            return
        self._logic.look(ui.opacitySlider.value, ui.thresholdSlider.value, ui.colourBox.currentText)
        self._logic.legend(ui.legendCheck.checked)
        if self._seen():
            self._session.showed(map=self._session.case.map_kind, opacity=round(ui.opacitySlider.value, 2),
                                 threshold=round(ui.thresholdSlider.value, 2))
