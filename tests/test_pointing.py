"""The pointing game and energy on maps and masks whose right answer is known."""

from pathlib import Path

import nrrd
import numpy as np
import PIL.Image
import pytest
import torch

from dcaf_monai import pointing
from dcaf_monai.image import Geometry, ImageError, Placement
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.phantom import film_to_dicom, phantom
from dcaf_monai.transforms import Preprocessing, read_input

SQUARE = Preprocessing(size=64)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return DualCrossAttentionFusion(2, backbones=("test_efficientnet", "test_resnet"), width=8, heads=2,
                                    fused=12, hidden=10).eval()


def hot_boxes(lesions, rows=16, columns=16):
    """Maps that know: hot where the lesion's middle lies."""
    maps, size = np.zeros((len(lesions.boxes), rows, columns), np.float32), lesions.inputs.shape[-1]
    for values, box in zip(maps, lesions.boxes, strict=True):
        values[int((box[0] + box[2]) / 2 / size * rows), int((box[1] + box[3]) / 2 / size * columns)] = 1
    return maps


def test_a_phantom_reaches_the_network_as_its_dicom_file_would(tmp_path: Path) -> None:
    lesions = pointing.phantom_lesions(SQUARE, target=1, count=2, seed=0, shape=(160, 136), contrast=.9)
    film = phantom(1, lesion=True, shape=(160, 136), contrast=.9)
    film_to_dicom(film, name="a", patient="a").save_as(tmp_path / "a.dcm", enforce_file_format=True)
    _, tensor, placement = read_input(tmp_path / "a.dcm", SQUARE)
    assert torch.allclose(lesions.inputs[1], tensor, atol=2e-3)
    assert lesions.boxes[1] == pytest.approx(pointing.box_on_input(film.lesion_box, placement))
    assert (lesions.target, lesions.source) == (1, "phantoms")


def test_the_box_surrounds_what_the_lesion_brightens() -> None:
    # neither lesion is the brightest thing of its film, so both films have one and the same grey scale
    strong, faint = (pointing.phantom_lesions(SQUARE, target=1, count=4, shape=(160, 136), contrast=contrast)
                     for contrast in (.45, .35))
    for index, box in enumerate(strong.boxes):
        added = (strong.inputs - faint.inputs)[index, 0].numpy()
        inside = np.zeros(added.shape, bool)
        inside[round(box[0]):round(box[2]), round(box[1]):round(box[3])] = True
        assert added[inside].mean() > 100 * np.abs(added[~inside]).mean()
        assert inside.mean() < .05


def test_a_box_of_the_stored_image_lies_on_the_input_by_its_placement() -> None:
    # two stored rows and four stored columns an input pixel; the input begins 10 rows above the image
    placement = Placement(32, (-10, 4), (2, 4))
    assert pointing.box_on_input((0, 4, 20, 44), placement) == (5, 0, 15, 10)


def test_a_map_that_knows_hits_every_lesion_and_the_middle_none() -> None:
    lesions = pointing.phantom_lesions(SQUARE, target=1, count=12, shape=(160, 136))
    maps = hot_boxes(lesions)
    assert pointing.hits(maps, lesions.boxes, size=64).all()
    middle = np.zeros((12, 16, 16))
    middle[:, 7:9, 7:9] = 1
    assert not pointing.hits(middle, lesions.boxes, size=64).any()


def test_a_hit_is_within_half_a_cell_of_the_box() -> None:
    # four rows of 5 pixels, five columns of 4; centres at rows 2.5, 7.5, ... and columns 2, 6, ...
    def hit(row, column, box):
        values = np.zeros((1, 4, 5))
        values[0, row, column] = 1
        return bool(pointing.hits(values, [box], size=20)[0])

    box = (6, 5, 9, 7)  # widened: rows 3.5 to 11.5, columns 3 to 9
    assert hit(1, 1, box)
    others = [(row, column) for row in range(4) for column in range(5) if (row, column) != (1, 1)]
    assert not any(hit(*other, box) for other in others)
    assert hit(0, 1, (5, 5, 9, 7)) and not hit(0, 1, (5.1, 5, 9, 7))  # 5 - 2.5 is the centre of row 0
    assert hit(1, 2, (6, 5, 9, 8)) and not hit(1, 2, (6, 5, 9, 7.9))
    assert pointing.chances((4, 5), [box, (0, 0, 20, 20)], size=20).tolist() == [1 / 20, 1]


def test_the_chance_level_is_what_random_peaks_reach() -> None:
    lesions = pointing.phantom_lesions(SQUARE, target=1, count=3, shape=(160, 136))
    box = lesions.boxes[1]
    random = np.random.default_rng(0).random((4000, 8, 8))
    reached = pointing.hits(random, [box] * 4000, size=64).mean()
    assert pointing.chances((8, 8), [box], size=64)[0] == pytest.approx(reached, abs=.02)


def test_a_blank_map_has_no_peak() -> None:
    assert not pointing.hits(np.ones((1, 4, 5)), [(0, 0, 20, 20)], size=20)[0]


def test_the_game_on_phantoms_plays_every_kind_the_network_has(network) -> None:
    found = pointing.pointing_game_on_phantoms(network, SQUARE, target=1, count=3)
    kinds = {"class_activation", "attention_first", "attention_second", "gate", "spatial"}
    assert set(found.hits) == set(found.chance) == kinds | {"centre"}
    assert all(hit.shape == (3,) and hit.dtype == bool for hit in found.hits.values())
    lesions = pointing.phantom_lesions(SQUARE, target=1, count=3)
    with torch.no_grad():
        assert found.recognised.tolist() == (network(lesions.inputs).argmax(1) == 1).tolist()
    fewer = pointing.pointing_game_on_phantoms(network, SQUARE, target=0, count=1, kinds=("gate",))
    assert set(fewer.hits) == {"gate", "centre"}


def test_another_explainer_plays_by_the_same_rules(network) -> None:
    lesions = pointing.phantom_lesions(SQUARE, target=1, count=4)
    found = pointing.pointing_game(network, lesions, explainer=lambda *_: {"oracle": hot_boxes(lesions)})
    assert found.hits["oracle"].all() and not found.hits["centre"].any()


def test_the_energy_of_a_map_inside_its_own_mask_is_one() -> None:
    heat = np.random.default_rng(0).random((5, 7)) * (np.arange(7) > 3)
    assert pointing.energy_inside(heat, heat > 0) == pytest.approx(1)
    assert pointing.energy_inside(heat, heat == 0) == 0
    heat, mask = np.array([[1., 2, 0], [0, 4, 1]]), np.array([[1, 1, 0], [0, 0, 1]])
    assert pointing.energy_inside(heat, mask) == (1 + 2 + 1) / 8


def test_even_heat_has_the_energy_of_the_masks_area() -> None:
    mask = np.random.default_rng(0).random((5, 7)) > .6
    assert pointing.energy_inside(np.full((5, 7), .3), mask) == pytest.approx(mask.mean())


def test_a_map_without_heat_has_no_energy() -> None:
    assert np.isnan(pointing.energy_inside(np.zeros((5, 7)), np.ones((5, 7), bool)))


MASK = np.zeros((10, 6), bool)
MASK[2:9, 1:3] = True


def write_mask(path: Path, form: str) -> Path:
    grey = (MASK * 255).astype(np.uint8)
    if form == "grey.png":
        PIL.Image.fromarray(grey).save(path / form)
    elif form == "bits.png":
        PIL.Image.fromarray(grey).convert("1").save(path / form)
    elif form == "wide.png":
        PIL.Image.fromarray(MASK.astype(np.uint16) * 300).save(path / form)
    elif form == "colour.png":  # blue only
        PIL.Image.fromarray(np.stack([grey * 0, grey * 0, grey], -1)).save(path / form)
    elif form == "clear.png":  # white everywhere, see-through outside
        PIL.Image.fromarray(np.stack([grey * 0 + 255] * 3 + [grey], -1)).save(path / form)
    else:
        values = MASK.T.astype(np.uint8) * 2
        nrrd.write(str(path / form), values if form == "flat.nrrd" else values[..., None])
    return path / form


@pytest.mark.parametrize("form", ["grey.png", "bits.png", "wide.png", "colour.png", "clear.png", "flat.nrrd",
                                  "slice.nrrd"])
def test_a_mask_reads_the_same_from_every_kind_of_file(form: str, tmp_path: Path) -> None:
    geometry = Geometry((10, 6))
    places = [(Placement(5, (0, -2), (2, 2)), geometry)] * 3
    found = pointing.masks_on_input({"b": write_mask(tmp_path, form), "c": MASK}, ["a", "b", "c"], places)
    assert found[0] is None
    # input rows show stored rows 1, 3, 5, 7, 9; columns -1, 1, 3, 5, 7: two of them beyond the image
    expected = np.zeros((5, 5), bool)
    expected[1:4, 1] = True
    for mask in found[1:]:
        assert mask.dtype == bool and (mask == expected).all()


@pytest.mark.parametrize("name, content, message", [
    ("a.png", b"no picture", "cannot be read"), ("a.nrrd", b"NRRD0005\nsizes: x\n\n", "cannot be read"),
    ("b.nrrd", b"nothing", "cannot be read"), ("a.txt", b"0 1", "got .txt"), ("mask", b"", "no suffix")])
def test_a_file_that_is_no_mask_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    place = (Placement(5, (0, 0), (2, 2)), Geometry((10, 6)))
    with pytest.raises(ImageError, match=message):
        pointing.masks_on_input({"a": tmp_path / name}, ["a"], [place])


def test_a_missing_mask_file_is_refused(tmp_path: Path) -> None:
    place = (Placement(5, (0, 0), (2, 2)), Geometry((10, 6)))
    with pytest.raises(ImageError, match="FileNotFoundError"):
        pointing.masks_on_input({"a": tmp_path / "a.png"}, ["a"], [place])


@pytest.mark.parametrize("form", ["grey.png", "flat.nrrd", "slice.nrrd", "array"])
def test_a_mask_of_another_grid_is_refused(form: str, tmp_path: Path) -> None:
    mask = MASK if form == "array" else write_mask(tmp_path, form)
    with pytest.raises(ImageError, match="need the stored image's 6 rows and 10 columns, got 10 x 6"):
        pointing.masks_on_input({"a": mask}, ["a"], [(Placement(5, (0, 0), (2, 2)), Geometry((6, 10)))])


def test_names_without_places_are_refused() -> None:
    with pytest.raises(ValueError, match="places"):
        pointing.masks_on_input({}, ["a"], [])


@pytest.mark.parametrize("inputs, boxes, message", [
    (torch.zeros(2, 1, 8, 8), [(0, 0, 1, 1)], "as many boxes"), (torch.zeros(0, 1, 8, 8), [], "at least one"),
    (torch.zeros(1, 8, 8), [(0, 0, 1, 1)], "size"),
    (torch.zeros(1, 1, 8, 8), [(3, 0, 3, 1)], "first corner")])
def test_lesions_that_do_not_fit_are_refused(inputs, boxes, message) -> None:
    with pytest.raises(ValueError, match=message):
        pointing.Lesions(inputs, tuple(boxes), 1)


def test_a_game_without_a_film_or_with_an_unknown_kind_is_refused(network) -> None:
    with pytest.raises(ValueError, match="count"):
        pointing.phantom_lesions(SQUARE, target=1, count=0)
    with pytest.raises(ValueError, match="kinds: need some of .*, got 'rainbow'"):
        pointing.pointing_game_on_phantoms(network, SQUARE, target=1, count=1, kinds=("rainbow",))
