"""Why each check matters and what to do about it: the second half of an item's sentence."""

from __future__ import annotations

_SHORTCUT = ("A model can answer from this without seeing the disease, and will fail where it is otherwise.",
             "Balance it between the labels, remove or crop it, or test on data where it does not hold.")
_PARTLY = ("It may be the disease in part, but also exposure, scanner or how the picture was made.",
           "Compare the pictures below; test on data from one source, and report figures within it.")
_PHOTOGRAPHED = ("Blacks that are never black and whites that are never white are the mark of photographed "
                 "or scanned film, and of a tint that was taken out by turning the picture grey; exposure "
                 "and the disease have a smaller part in them.",
                 "Look at the pictures below; keep photographs of film out, or have them in every label.")

WORDS: dict[str, tuple[str, str]] = {
    "patients": ("What is tested was learned: every figure is too good.",
                 "Move all images of a patient into one split, or name the patients in a column group."),
    "patients look": ("If patients are in two splits, what is tested was learned.",
                      "Find out, and name the patients in a column group."),
    "exact_duplicates look": ("A copy counts twice.", "Keep one of each."),
    "patients_across_tasks": ("A model trained on one task has seen patients of the other.",
                              "Never train on one of these tasks and test on the other."),
    "exact_duplicates": ("A copy in two splits is learned and then tested; one with two labels is wrong "
                         "once.",
                         "Keep one of each, and settle its label."),
    "near_duplicates": ("Copies that are tested after being learned make figures too good.",
                        "Look at the pairs; give true copies and films of one patient a common group."),
    "duplicates_across_tasks": ("A model trained on one task has seen pictures of the other.",
                                "Never train on one of these tasks and test on the other."),
    "source": ("Where source and label go together, a model may learn the source (scanner, age, hospital) "
               "instead of the disease, and nothing inside this data can tell the difference.",
               "Report figures within each source, and test on another hospital with all labels before "
               "believing any."),
    "format": _SHORTCUT, "size": _SHORTCUT, "aspect": _SHORTCUT, "area": _SHORTCUT, "colour": _SHORTCUT,
    "compression": _SHORTCUT, "scanner": _SHORTCUT, "projection": _SHORTCUT, "posterised": _SHORTCUT,
    "black_margin": _SHORTCUT, "white_margin": _SHORTCUT,
    "boxes": ("Boxes hide names; where one label has more of them, a model can look for the box.",
              "Crop them off, paint them at random over all labels, or leave such pictures out."),
    "text": ("Text names wards, portable machines or people; a model can read it, and people can be known "
             "by it.",
             "Check for names first; then cover the text, or balance it between the labels."),
    "age": ("Children against adults is told by size and bone, not by disease.", "Compare within an age "
                                                                                 "group."),
    "sex": ("Sex is seen in a film; where it goes with the label it can stand in for it.", "Compare within "
                                                                                           "it."),
    "black_level": _PHOTOGRAPHED, "white_level": _PHOTOGRAPHED, "grey_ends": _PHOTOGRAPHED,
    "brightness": _PARTLY, "contrast": _PARTLY, "grey_levels": _PARTLY, "saturated": _PARTLY,
    "sharpness": _PARTLY, "bytes": _PARTLY,
    "properties": ("No picture was seen, only numbers about the file and its grey scale.",
                   "Find which by the items above, and repair it before reporting any figure."),
    "border": ("The disease is not at the edge; markers, collimation and the way a film was made are.",
               "Crop to the lungs or the retina, and see what is left of the figures."),
    "blackout": ("The disease is covered, and the label is still told.",
                 "Believe no figure of a model until one trained with the middle covered fails."),
    "thumbnail": ("No fine sign is left at this size, only how the whole picture looks.",
                  "Where fine signs make the diagnosis, this is a shortcut; look at the mean pictures."),
    "splits": ("If the splits can be told apart, the test is of another population than the training.",
               "Draw the splits anew by patient, or report the test as an external one."),
    "not_told": ("", ""), "unreadable": ("", "Repair or remove them."),
    "associations": ("", "Add images of the rarer labels."),
}


def advice(name: str, verdict: str) -> str:
    """What to add to a finding that does not pass; empty for a check without words."""
    stem = name.removesuffix("_model")
    if stem.startswith("model_source"):
        return ("The model sees where a picture is from even where the label does not tell it. Report "
                "figures within each source, and test on another.")
    return " ".join(part for part in WORDS.get(f"{stem} {verdict}", WORDS.get(stem, ())) if part)
