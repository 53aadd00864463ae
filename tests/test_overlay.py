import copy
import dataclasses

import nibabel
import numpy as np
import PIL.Image
import pytest
import SimpleITK
import torch
from monai.visualize import GradCAM
from torch import nn

from dcaf_monai.heat import class_activations, class_gradients, gate_share, received_attention
from dcaf_monai.image import Geometry, Image, Placement
from dcaf_monai.network import DualCrossAttentionFusion, Explanation, LevelExplanation
from dcaf_monai.overlay import (
    COLOURS,
    KINDS,
    Heat,
    blend,
    fit_scales,
    heats,
    on_image,
    write_nifti,
    write_nrrd,
    write_png,
)

SIZE = (80, 112)  # maps of 10x14 and 5x7
TILTED = Geometry((50, 70), spacing_mm=(0.7, 0.3), origin_mm=(12.0, -30.0, 5.0),
                  right=(0.8, 0.6, 0.0), down=(-0.36, 0.48, 0.8))  # spaced and rotated out of plane


@pytest.fixture(scope="module")
def network() -> DualCrossAttentionFusion:
    torch.manual_seed(0)
    made = DualCrossAttentionFusion(3, backbones=("test_efficientnet", "test_resnet"), width=16, heads=2,
                                    fused=32, hidden=8)
    made.train()
    with torch.no_grad():
        made(torch.rand(4, 1, 64, 96))
    return made.eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(2, 1, *SIZE)


@pytest.fixture(scope="module")
def explanation(network, x) -> Explanation:
    with torch.inference_mode():
        return network.explain(network.trunks(x))


def place(rows: int = 50, columns: int = 70, size: int = 224) -> tuple[Placement, Geometry]:
    return Placement(size, (0.0, 0.0), (rows / size, columns / size)), Geometry((rows, columns))


def a_heat(values: np.ndarray, geometry: Geometry, *, placement: Placement | None = None, **changes) -> Heat:
    grid = dataclasses.replace(geometry, shape=values.shape)
    if placement:
        grid = placement.grid(values.shape, geometry)
    return Heat(**{"kind": "spatial", "level": 1, "values": values.astype(np.float32), "geometry": grid,
                   "scale": 1.0, "unit": "Weight of a place.", **changes})


# --- what the maps are -------------------------------------------------------------------------

def test_the_gradient_of_the_head_is_exact_and_ignores_dropout(network, explanation):
    found = class_gradients(network.head.train(), explanation.pooled, [2, 0])
    network.head.eval()
    exact = copy.deepcopy(network.head).double()
    pooled = explanation.pooled.clone().double()
    full = torch.autograd.functional.jacobian(exact, pooled)  # (image, class, image, unit)
    by_hand = torch.stack((full[0, 2, 0], full[1, 0, 1]))
    torch.testing.assert_close(found.double(), by_hand, atol=1e-6, rtol=1e-4)


def test_all_cells_of_both_levels_together_give_gradient_times_pooled(network, explanation):
    one, two = class_activations(network.head, explanation, [1, 2])
    gradients = class_gradients(network.head, explanation.pooled, [1, 2])
    torch.testing.assert_close(one.sum((1, 2)) + two.sum((1, 2)), (gradients * explanation.pooled).sum(1),
                               atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("level", [1, 2])
def test_class_activation_equals_monais_gradcam_at_the_same_layer(network, x, explanation, level):
    full = GradCAM(nn_module=network, target_layers=f"level_{level}", upsampler=lambda size: nn.Identity(),
                   postprocessing=lambda cam: cam)
    for row, index in enumerate((1, 2)):
        expected = full(x[row:row + 1], class_idx=index)[0, 0].detach()
        assert expected.max() > 0
        found = heats(network.head, explanation, classes=[1, 2], places=[place()] * 2, level=level)
        difference = np.abs(found[row]["class_activation"].values - np.asarray(expected))
        assert difference.max() <= 1e-3 * float(expected.max())


def test_class_activation_equals_a_backward_pass_to_the_input_of_the_pooling(network, x):
    features = network.trunks(x)
    fused = network.fuse(features)
    logits = network.head(fused.pooled)
    gradients = torch.autograd.grad(logits[0, 2] + logits[1, 0], fused.maps)
    explained = network.explain(features)
    ours_of_levels = class_activations(network.head, explained, [2, 0])
    for ours, gradient, level in zip(ours_of_levels, gradients, fused.maps, strict=True):
        torch.testing.assert_close(ours, (gradient * level).sum(1), atol=1e-6, rtol=1e-4)


def test_both_levels_together_keep_the_sum_before_what_speaks_against_is_cut(network, explanation):
    one, two = (level.double() for level in class_activations(network.head, explanation, [0, 1]))
    fine = two.repeat_interleave(2, 1).repeat_interleave(2, 2) / 4  # 5x7 shared out over 10x14
    found = heats(network.head, explanation, classes=[0, 1], places=[place()] * 2, level=0)
    for row in range(2):
        expected = (one + fine)[row].clamp(min=0)
        np.testing.assert_allclose(found[row]["class_activation"].values, expected, atol=1e-6)


def test_received_attention_is_the_mean_over_queries_and_heads_with_one_for_even():
    attention = torch.tensor([[[[1.0, 0, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0, 0]]]])
    by_hand = torch.tensor([[[4.5, 1.5, 0], [0, 0, 0]]])
    torch.testing.assert_close(received_attention(attention, (2, 3)), by_hand)
    even = torch.full((2, 3, 4, 6), 1 / 6)
    torch.testing.assert_close(received_attention(even, (2, 3)), torch.ones(2, 2, 3))


def test_the_gate_map_is_the_second_trunks_share():
    into_first, into_second = torch.full((1, 4, 2, 3), 0.6), torch.full((1, 4, 2, 3), 0.2)
    torch.testing.assert_close(gate_share((into_first, into_second)), torch.full((1, 2, 3), 0.75))


def test_every_kind_comes_from_its_own_values(network, explanation):
    found = heats(network.head, explanation, classes=[0, 1], places=[place()] * 2, kinds=KINDS, level=2)
    level = explanation.levels[1]
    expected = {
        "attention_first": level.attention[0].mean((1, 2)).view(2, 5, 7) * 35,
        "attention_second": level.attention[1].mean((1, 2)).view(2, 5, 7) * 35,
        "gate": level.gates[0].mean(1) / (level.gates[0].mean(1) + level.gates[1].mean(1)),
        "spatial": level.spatial[:, 0]}
    assert [set(each) for each in found] == [set(KINDS)] * 2
    for kind, values in expected.items():
        for row in range(2):
            np.testing.assert_allclose(found[row][kind].values, values[row], rtol=1e-5)
            assert found[row][kind].kind == kind and found[row][kind].level == 2


def one_cell(shape: tuple[int, int], cell: tuple[int, int]) -> torch.Tensor:
    grid = torch.zeros(1, 1, *shape)
    grid[0, 0, cell[0], cell[1]] = 1
    return grid


def made_up(fine: torch.Tensor, coarse: torch.Tensor) -> Explanation:
    """An explanation whose only content is its spatial maps."""
    nothing = torch.ones(1, 1, 1, 1)
    levels = tuple(LevelExplanation(each, (nothing, nothing), (1, 1), (nothing, nothing), each)
                   for each in (fine, coarse))
    return Explanation((fine, coarse), torch.zeros(1, 2), levels)


def test_averaged_levels_of_uneven_sizes_keep_an_even_map_even():
    found = heats(nn.Sequential(nn.Linear(2, 3)), made_up(torch.ones(1, 1, 9, 13), torch.ones(1, 1, 5, 7)),
                  classes=[0], places=[place()], kinds=["spatial"])[0]["spatial"]
    np.testing.assert_allclose(found.values, np.ones((9, 13)), rtol=1e-6)


# --- where the maps lie --------------------------------------------------------------------------

PLACEMENTS = {
    "stretched": (Placement(224, (0.0, 0.0), (50 / 224, 70 / 224)), TILTED),
    "letter-boxed": (Placement(224, (-10.0, 0.0), (70 / 224, 70 / 224)), TILTED),
    "cropped": (Placement(224, (0.0, 10.0), (50 / 224, 50 / 224)), TILTED),
    "plain": (Placement(224, (0.0, 0.0), (50 / 224, 70 / 224)), Geometry((50, 70))),
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_known_cell_lands_on_its_known_source_pixels(name):
    placement, geometry = PLACEMENTS[name]
    cell, grid = (9, 17), (28, 28)
    found = heats(nn.Sequential(nn.Linear(2, 3)), made_up(one_cell(grid, cell), one_cell((14, 14), (4, 8))),
                  classes=[0], places=[(placement, geometry)], kinds=["spatial"], level=1)[0]["spatial"]
    # by hand: the cell's input pixels, mapped to source edges
    edges = [[placement.edge[axis] + (cell[axis] + step) * 8 * placement.scale[axis] for step in (0, 1)]
             for axis in (0, 1)]
    centre = [sum(pair) / 2 - 0.5 for pair in edges]
    np.testing.assert_allclose(found.geometry.point_mm(*cell), geometry.point_mm(*centre), atol=1e-9)
    image = Image("1.2.3", np.zeros((50, 70), np.float32), geometry)
    shown = on_image(found, image)
    peak = np.unravel_index(shown.argmax(), shown.shape)
    for axis in (0, 1):
        assert edges[axis][0] - 1 <= peak[axis] <= edges[axis][1]
    rows, columns = np.nonzero(shown)
    reach = [(pair[1] - pair[0]) for pair in edges]  # linear interpolation reaches one cell further
    assert rows.min() >= edges[0][0] - reach[0] - 1 and rows.max() <= edges[0][1] + reach[0]
    assert columns.min() >= edges[1][0] - reach[1] - 1 and columns.max() <= edges[1][1] + reach[1]


def hot_everywhere(cell: tuple[int, int]) -> Explanation:
    """Whatever map is made of it, one cell of level 1 is the hottest."""
    levels = []
    for grid, place_ in (((28, 28), cell), ((14, 14), (cell[0] // 2, cell[1] // 2))):
        one, keys = one_cell(grid, place_), grid[0] * grid[1]
        attention = one.reshape(1, 1, 1, keys).expand(1, 2, keys, keys)   # every query asks this key alone
        gates = 0.1 + 0.8 * one.expand(1, 3, *grid)
        levels.append(LevelExplanation(one, grid, (attention, attention), (gates, 1 - gates),
                                       0.1 + 0.8 * one))
    return Explanation((levels[0].map, levels[1].map), torch.ones(1, 2), (levels[0], levels[1]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PLACEMENTS)
def test_the_known_cell_of_every_kind_of_map_lands_on_its_known_source_pixels(name, kind):
    (placement, geometry), cell = PLACEMENTS[name], (9, 17)
    head = nn.Sequential(nn.Linear(2, 3))
    nn.init.ones_(head[0].weight)
    found = heats(head, hot_everywhere(cell), classes=[0], places=[(placement, geometry)], kinds=[kind],
                  level=1)[0][kind]
    values = np.asarray(found.values)
    assert values.shape == (28, 28) and np.unravel_index(values.argmax(), values.shape) == cell
    centre = [placement.edge[axis] + (cell[axis] + 0.5) * 8 * placement.scale[axis] - 0.5 for axis in (0, 1)]
    np.testing.assert_allclose(found.geometry.point_mm(*cell), geometry.point_mm(*centre), atol=1e-9)
    shown = on_image(found, Image("1.2.3", np.zeros((50, 70), np.float32), geometry))
    peak = np.unravel_index(shown.argmax(), shown.shape)
    for axis in (0, 1):
        assert abs(peak[axis] - centre[axis]) <= 4 * placement.scale[axis] + 1


def test_a_linear_map_is_linear_on_the_image_also_when_it_was_decoded_smaller():
    rows, columns = np.mgrid[0:5, 0:7]
    heat = a_heat(rows * 10.0 + columns, TILTED, placement=Placement(32, (0.0, 0.0), (50 / 32, 70 / 32)))
    for shape in ((50, 70), (25, 35)):
        shown = on_image(heat, Image("a", np.zeros(shape, np.float32), TILTED))
        row, column = shape[0] // 2, shape[1] // 3
        expected = ((row + 0.5) * 5 / shape[0] - 0.5) * 10 + (column + 0.5) * 7 / shape[1] - 0.5
        assert shown[row, column] == pytest.approx(expected)


def test_what_the_network_did_not_see_is_not_coloured():
    placement = Placement(224, (0.0, 10.0), (50 / 224, 50 / 224))  # columns 10 to 60 of 70
    heat = a_heat(np.ones((4, 4)), TILTED, placement=placement)
    shown = on_image(heat, Image("a", np.zeros((50, 70), np.float32), TILTED))
    np.testing.assert_array_equal(shown.any(0).nonzero()[0], np.arange(10, 60))


@pytest.mark.parametrize(("write", "name"), [(write_nrrd, "heat.nrrd"), (write_nifti, "heat.nii.gz")])
def test_a_written_map_read_by_itk_lies_where_the_image_lies(write, name, tmp_path):
    values = np.arange(35.0).reshape(5, 7)
    heat = a_heat(values, TILTED, placement=Placement(32, (-3.0, 0.0), (2.0, 1.5)))
    write(heat, tmp_path / name)
    read = SimpleITK.ReadImage(str(tmp_path / name))
    assert read.GetSize() == (7, 5, 1) and read.GetPixelID() == SimpleITK.sitkFloat32
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(read)[0], values)
    for row, column in ((0, 0), (4, 6), (1, 5)):
        place_mm = read.TransformIndexToPhysicalPoint((column, row, 0))
        np.testing.assert_allclose(place_mm, heat.geometry.point_mm(row, column), atol=1e-4)
    np.testing.assert_allclose(read.GetSpacing()[:2], heat.geometry.spacing_mm[::-1], rtol=1e-5)


def test_a_written_nifti_is_in_ras_millimetres(tmp_path):
    heat = a_heat(np.arange(35.0).reshape(5, 7), TILTED)
    write_nifti(heat, tmp_path / "heat.nii")
    affine = nibabel.load(tmp_path / "heat.nii").affine
    corner = heat.geometry.point_mm(4, 6)
    np.testing.assert_allclose((affine @ [6, 4, 0, 1])[:3], corner * [-1, -1, 1], atol=1e-4)


# --- what they look like -------------------------------------------------------------------------

def grey_image(value: float = 100.0) -> Image:
    return Image("a", np.linspace(0, value, 35, dtype=np.float32).reshape(5, 7), Geometry((5, 7)))


def test_below_the_threshold_the_image_stays_grey_and_untouched():
    picture = blend(grey_image(), a_heat(np.full((5, 7), 0.09), Geometry((5, 7))), threshold=0.1)
    assert picture.shape == (5, 7, 3) and picture.dtype == np.uint8
    assert (picture == picture[..., :1]).all() and picture.min() == 0 and picture.max() == 255


def test_at_the_top_of_the_scale_the_colour_covers_by_its_opacity():
    heat = a_heat(np.full((5, 7), 5.0), Geometry((5, 7)), scale=2.0)
    np.testing.assert_array_equal(blend(grey_image(), heat, opacity=1.0), np.tile(COLOURS[-1], (5, 7, 1)))
    half = blend(grey_image(), heat, opacity=0.5)
    np.testing.assert_allclose(half[0, 0], COLOURS[-1] / 2, atol=1)  # over black


def test_the_colour_of_a_value_does_not_depend_on_the_rest_of_the_map():
    faint, strong = np.full((5, 7), 0.4), np.full((5, 7), 0.4)
    strong[4, 6] = 1.0
    pictures = [blend(grey_image(), a_heat(values, Geometry((5, 7)))) for values in (faint, strong)]
    np.testing.assert_array_equal(pictures[0][:3, :5], pictures[1][:3, :5])


def test_an_even_image_is_blended_without_a_fault():
    flat = Image("a", np.full((5, 7), 7.0, np.float32), Geometry((5, 7)))
    assert np.isfinite(blend(flat, a_heat(np.ones((5, 7)), Geometry((5, 7))))).all()


def test_the_colours_grow_evenly_in_cie_lightness_and_keep_one_hue():
    share = COLOURS / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    np.testing.assert_allclose(lightness, np.linspace(30, 90, 256), atol=0.6)
    strong = COLOURS[:200].astype(float)
    assert (strong[:, 0] > strong[:, 1]).all() and (strong[:, 1] > strong[:, 2]).all()  # amber throughout


def test_a_png_is_the_blend_and_below_it_the_legend(tmp_path):
    image = Image("a", np.random.default_rng(0).random((40, 200), dtype=np.float32), Geometry((40, 200)))
    whole = Placement(32, (0.0, 0.0), (40 / 32, 200 / 32))
    heat = a_heat(np.ones((4, 20)), image.geometry, placement=whole)
    write_png(image, heat, tmp_path / "bare.png", legend=False)
    write_png(image, heat, tmp_path / "full.png")
    bare, full = (np.asarray(PIL.Image.open(tmp_path / name)) for name in ("bare.png", "full.png"))
    np.testing.assert_array_equal(bare, blend(image, heat))
    np.testing.assert_array_equal(full[:40], bare)
    assert full.shape[0] > 60 and (full[46:56, 6] == COLOURS[0]).all() and (full[40:] == 255).any()


# --- what is refused -----------------------------------------------------------------------------

def test_fitted_scales_are_the_peaks_of_many_images_and_natural_tops_stay():
    found = [{"class_activation": a_heat(np.full((5, 7), peak), Geometry((5, 7)), kind="class_activation"),
              "gate": a_heat(np.full((5, 7), 0.5), Geometry((5, 7)), kind="gate")} for peak in range(1, 102)]
    assert fit_scales(found) == {"class_activation": pytest.approx(100), "gate": 1.0}
    with pytest.raises(ValueError, match="heats: need the maps of at least one image"):
        fit_scales([])


def test_scales_of_the_model_are_used(network, explanation):
    found = heats(network.head, explanation, classes=[0, 1], places=[place()] * 2,
                  kinds=["class_activation", "gate"], scales={"class_activation": 0.25})
    assert (found[0]["class_activation"].scale, found[0]["gate"].scale) == (0.25, 1.0)


def test_class_activation_needs_no_explanation_and_the_other_kinds_say_that_they_do(network, x, explanation):
    with torch.inference_mode():
        fused = network.fuse(network.trunks(x))
    without = heats(network.head, fused, classes=[0, 1], places=[place()] * 2)
    with_it = heats(network.head, explanation, classes=[0, 1], places=[place()] * 2)
    np.testing.assert_allclose(without[1]["class_activation"].values, with_it[1]["class_activation"].values,
                               atol=1e-6)
    with pytest.raises(ValueError, match="gate: need an explanation"):
        heats(network.head, fused, classes=[0, 1], places=[place()] * 2, kinds=["gate"])


@pytest.mark.parametrize(("changes", "message"), [
    ({"kinds": ["rainbow"]}, "need some of class_activation.*got rainbow and 0"),
    ({"level": 3}, "and 0, 1 or 2, got class_activation and 3"),
    ({"classes": [0]}, r"need one an image \(2\), got 1 and 2"),
    ({"classes": [0, 3]}, r"classes: need indices below 3, got \[0, 3\]"),
    ({"classes": [0, -1]}, r"classes: need indices below 3, got \[0, -1\]"),
])
def test_impossible_wishes_are_refused(network, explanation, changes, message):
    with pytest.raises(ValueError, match=message):
        heats(network.head, explanation, **{"classes": [0, 1], "places": [place()] * 2, **changes})


def test_an_impossible_heat_is_refused():
    with pytest.raises(ValueError, match="values: need float32"):
        a_heat(np.full((5, 7), -1.0), Geometry((5, 7)))
    with pytest.raises(ValueError, match="scale: need a positive number, got 0.0"):
        a_heat(np.ones((5, 7)), Geometry((5, 7)), scale=0.0)
    with pytest.raises(ValueError, match=r"geometry: need shape \(5, 7\), got \(7, 5\)"):
        Heat("gate", 1, np.ones((5, 7), np.float32), Geometry((7, 5)), 1.0, "")


def test_a_heat_of_another_plane_or_an_impossible_opacity_is_not_blended():
    heat = a_heat(np.ones((5, 7)), TILTED)
    with pytest.raises(ValueError, match="heat: need a map in the plane of the image"):
        blend(grey_image(), heat)
    with pytest.raises(ValueError, match="opacity, threshold: need 0 to 1"):
        blend(grey_image(), a_heat(np.ones((5, 7)), Geometry((5, 7))), opacity=1.5)
