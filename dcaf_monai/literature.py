"""Published results on PneumoniaMNIST and OCTMNIST, official splits, each with its source and its caveat.

Areas are ROC (several classes: mean one against the rest), accuracies at the most probable class; both
as shares. A figure that was not read in its source but handed down is marked ``checked=False`` and shown
with a question mark: look it up before you quote it.
"""

from __future__ import annotations

from dataclasses import dataclass

V2 = "Yang et al., Sci Data 10:41 (2023), doi 10.1038/s41597-022-01721-8"
PLUS = "Doerrich et al., Sci Rep (2025), arXiv 2404.15786; mean and sd of three seeds"
README = "the authors' own repository"
ENLARGED = "28 px images enlarged to 224 by nearest neighbour, not true 224"
PROTOCOL = "how the figure was selected was not checked"


@dataclass(frozen=True)
class Published:
    """One published result.

    Args:
        collection: ``pneumoniamnist`` or ``octmnist``.
        method: Network or system.
        pixels: Side of its input images.
        auroc: Share; None when not reported.
        accuracy: Share; None when not reported.
        source: Where it was published.
        auroc_sd: Over seeds.
        accuracy_sd: Over seeds.
        caveat: What stands between it and a fair comparison; empty for nothing known.
        checked: Whether the figures were read in the source or a public copy of its table.
    """

    collection: str
    method: str
    pixels: int
    auroc: float | None
    accuracy: float | None
    source: str
    auroc_sd: float | None = None
    accuracy_sd: float | None = None
    caveat: str = ""
    checked: bool = True


def _v2(method: str, pixels: int, pneumonia: tuple[float, float], oct_: tuple[float, float], *,
        oct_checked: bool = False) -> tuple[Published, Published]:
    caveat = ENLARGED if pixels == 224 else ""
    return (Published("pneumoniamnist", method, pixels, *pneumonia, V2, caveat=caveat),
            Published("octmnist", method, pixels, *oct_, V2, caveat=caveat, checked=oct_checked))


def _plus(method: str, pneumonia: tuple[float | None, ...], oct_: tuple[float | None, ...], *,
          pixels: int = 224) -> tuple[Published, Published]:
    """Per collection: accuracy, its sd, AUROC, its sd."""
    def result(collection: str, accuracy: float | None, accuracy_sd: float | None, auroc: float | None,
               auroc_sd: float | None) -> Published:
        return Published(collection, method, pixels, auroc, accuracy, PLUS, auroc_sd, accuracy_sd)

    return result("pneumoniamnist", *pneumonia), result("octmnist", *oct_)


RESULTS: tuple[Published, ...] = (
    *_v2("ResNet-18", 28, (.944, .854), (.943, .743)),
    *_v2("ResNet-18", 224, (.956, .864), (.958, .763)),
    *_v2("ResNet-50", 28, (.948, .854), (.952, .762)),
    *_v2("ResNet-50", 224, (.962, .884), (.958, .776), oct_checked=True),
    *_v2("auto-sklearn", 28, (.942, .855), (.887, .601)),
    *_v2("AutoKeras", 28, (.947, .878), (.955, .763)),
    *_v2("Google AutoML Vision", 28, (.991, .946), (.963, .771)),
    *_plus("EfficientNet-B4", (.8713, .0114, .9671, .0072), (.8257, .0467, .9893, .0024)),
    *_plus("EfficientNet-B4", (.7901, None, .9069, None), (.5993, None, .8865, None), pixels=28),
    *_plus("ResNet-18", (.9113, .0096, .9804, .0030), (.8510, .0112, .9881, .0028)),
    *_plus("DenseNet-121", (.8894, .0230, .9741, .0080), (.8663, .0042, .9926, .0024)),
    *_plus("VGG16", (.8739, .0100, .9847, .0016), (.9030, .0262, .9917, .0013)),
    *_plus("ViT-B/16", (.8611, .0357, .9633, .0051), (.9013, .0039, .9912, .0015)),
    *_plus("CLIP ViT-B/16", (.838, None, .956, None), (.868, None, .989, None)),
    *_plus("EVA-02 ViT-B/16", (.828, None, .935, None), (.874, None, .989, None)),
    *_plus("DINO ViT-B/16", (.841, None, .967, None), (.851, None, .986, None)),
    *_plus("SAM ViT-B/16", (.838, None, .945, None), (.873, None, .992, None)),
    *_plus("DINO ViT-B/16, linear probe", (.9156, .0027, .9892, .0008), (.7373, .0099, .9835, .0008)),
    *_plus("ViT-B/16, linear probe", (.8830, None, .9763, None), (.8357, .0012, .9896, .0003)),
    Published("pneumoniamnist", "DINO ViT-B/16, linear probe", 28, .9729, .8659, PLUS),
    Published("octmnist", "VGG16", 28, .9584, .7750, PLUS),
    *(Published(collection, f"MedViTV2-{size}", 224, None, accuracy, f"MedViTV2, {README}", caveat=PROTOCOL)
      for collection, accuracies in (("pneumoniamnist", (.951, .965, .969, .973)),
                                     ("octmnist", (.927, .942, .944, .952)))
      for size, accuracy in zip("TSBL", accuracies, strict=True)),
    Published("pneumoniamnist", "MedMamba", 224, .965, .899, f"MedMamba, {README}", caveat=PROTOCOL),
    Published("octmnist", "MedMamba", 224, .992, .918, f"MedMamba, {README}", caveat=PROTOCOL),
)
"""All of them, in the order of their sources."""


def published_results(collection: str) -> list[Published]:
    """The results of one collection, in the order of their sources."""
    return [result for result in RESULTS if result.collection == collection]
