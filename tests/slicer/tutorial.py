"""Takes the pictures of ``docs/slicer_tutorial.md``: the module at a server, step by step.

    make demo
    .venv/bin/dcaf serve --studies demo/films --model demo/model.safetensors
    .venv-slicer/bin/python tests/slicer/tutorial.py http://127.0.0.1:8000 docs/slicer

The films must be synthetic: the pictures are published. What is seen is the tests' fixture, not the
desktop application.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/slicer"), str(ROOT / "slicer_extension/DCAFReview")]

import fixture  # noqa: E402

fixture.start()

import slicer  # noqa: E402
from DCAFReviewLib.layout import IMAGE  # noqa: E402


def main(url: str, folder: Path) -> None:
    widget = fixture.open_module(ROOT / "slicer_extension/DCAFReview/DCAFReview.py")
    ui, session = widget.ui, widget.session

    def take(name: str, section=None) -> None:
        fixture.process(0.4)
        if section is not None:
            fixture.main_window().show_section(section)
            fixture.process(0.2)
        fixture.screenshot(fixture.main_window(), folder / f"{name}.png")

    ui.urlEdit.text, ui.readerEdit.text = url, "ada"
    take("1_connect")
    ui.connectButton.click()
    fixture.wait(lambda: session.page.total and not session.page.busy, 60)
    ui.nextButton.click()
    fixture.wait(lambda: session.case is not None and session.case.heat is not None, 60)
    take("2_case")
    rows, columns = fixture.grab_view(IMAGE).shape[:2]
    ui.pointButton.click()
    fixture.click_view(IMAGE, rows // 2, columns // 3)
    fixture.process(0.2)
    session.choose(session.connection.classes[1][0])
    take("3_answer", ui.answerSection)
    ui.submitButton.click()
    first = session.sent[0].uid
    fixture.wait(lambda: session.case is not None and session.case.uid != first and session.case.heat, 60)
    ui.mapBox.setCurrentIndex(1)
    fixture.wait(lambda: session.case.heat is not None, 60)
    take("4_map", ui.overlaySection)
    ui.readFirstCheck.click()
    second = session.case.uid
    session.skip("lateral view")
    fixture.wait(lambda: session.case is not None and session.case.uid != second and session.case.picture, 60)
    take("5_read_first", ui.worklistSection)
    session.close_case()
    slicer.mrmlScene.Clear(0)
    fixture.close_module(widget)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
