"""Deletion, insertion and ROAD against pixels replaced by hand and linear systems solved by another way."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dcaf_monai import erasure

RNG = np.random.default_rng(0)


def a_picture(rows=9, columns=11):
    return RNG.random((rows, columns)).astype(np.float32)


def mean_of_neighbours(picture, row, column):
    """Weighted mean of the eight around a pixel, as far as they exist, in plain loops."""
    total = weights = 0.0
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            r, c = row + down, column + right
            if (down or right) and 0 <= r < picture.shape[0] and 0 <= c < picture.shape[1]:
                weight = 1 / 12 if down and right else 1 / 6
                total, weights = total + weight * picture[r, c], weights + weight
    return total / weights


def test_the_hottest_pixels_are_replaced_first():
    picture, other = np.zeros((2, 3)), np.ones((2, 3))
    ranks = erasure.hot_first(np.array([[.1, .9, .3], [.8, .2, .0]]))
    assert ranks.tolist() == [[4, 0, 2], [1, 3, 5]]
    steps = erasure.replaced(picture, other, ranks=ranks, fractions=(0, 1 / 3, .5, 1))
    assert steps.tolist() == [[[0, 0, 0], [0, 0, 0]], [[0, 1, 0], [1, 0, 0]], [[0, 1, 1], [1, 0, 0]],
                              [[1, 1, 1], [1, 1, 1]]]


def test_equal_pixels_go_in_a_random_order_and_not_row_by_row():
    heat = np.zeros((20, 30))
    heat[13, 7] = 1
    ranks = erasure.hot_first(heat, seed=3)
    assert ranks[13, 7] == 0 and sorted(ranks.ravel()) == list(range(600))
    assert abs(ranks[:10].mean() - ranks[10:].mean()) < 60  # row by row they would be 300 apart
    assert (ranks == erasure.hot_first(heat, seed=3)).all()
    assert (ranks != erasure.hot_first(heat, seed=4)).any()


def test_the_area_under_a_curve_is_that_of_its_trapezoids():
    # 0.2 * (1 + 0.5) / 2 + 0.8 * (0.5 + 0) / 2
    assert erasure.area(np.array([1, .5, 0]), (0, .2, 1)) == pytest.approx(.15 + .2)
    assert erasure.area(np.ones((4, 3)), (0, .7, 1)).tolist() == pytest.approx([1] * 4)


def test_the_curves_are_those_of_pixels_replaced_one_by_one():
    pictures = np.stack([a_picture(5, 7), a_picture(5, 7)])
    heat, weights = RNG.random((2, 5, 7)), RNG.random((5, 7))
    fractions = (0, 1 / 7, .4, 1)

    def answer(made, case):
        return (made * weights).mean((1, 2)) + case

    found = erasure.curves(answer, pictures, orders={"own": heat}, fractions=fractions)
    for case in range(2):
        blurred = gaussian_filter(pictures[case], 7 / 16, mode="nearest")
        places = sorted(((r, c) for r in range(5) for c in range(7)), key=lambda p: -heat[case][p])
        for step, count in enumerate((0, 5, 14, 35)):
            deleted, inserted = pictures[case].copy(), blurred.copy()
            for place in places[:count]:
                deleted[place], inserted[place] = blurred[place], pictures[case][place]
            for kind, made in (("deletion", deleted), ("insertion", inserted)):
                assert getattr(found, kind)["own"][case, step] == pytest.approx(
                    (made * weights).mean() + case, abs=1e-6)


def test_deletion_begins_and_insertion_ends_with_the_answer_to_the_whole_picture():
    pictures = np.stack([a_picture(), a_picture(), a_picture()])
    orders = {"one": RNG.random(pictures.shape), "two": RNG.random(pictures.shape)}
    found = erasure.curves(lambda made, case: made[:, 4, 4], pictures, orders=orders)
    for name in orders:
        assert found.deletion[name][:, 0] == pytest.approx(pictures[:, 4, 4])
        assert found.insertion[name][:, -1] == pytest.approx(pictures[:, 4, 4])
        assert found.deletion[name][:, -1] == pytest.approx(found.insertion[name][:, 0])
    assert found.deletion["one"][:, -1] == pytest.approx(found.deletion["two"][:, -1])


def test_one_missing_pixel_becomes_the_weighted_mean_of_its_neighbours():
    picture = np.array([[1., 2, 3], [4, 50, 6], [7, 8, 10]])
    middle, corner = np.zeros((2, 3, 3), bool)
    middle[1, 1], corner[0, 0] = True, True
    assert erasure.impute(picture, middle)[1, 1] == pytest.approx((2 + 4 + 6 + 8) / 6 + (1 + 3 + 7 + 10) / 12)
    # two direct neighbours and one diagonal: (2/6 + 4/6 + 50/12) / (1/6 + 1/6 + 1/12)
    assert erasure.impute(picture, corner)[0, 0] == pytest.approx((1 + 50 / 12) / (5 / 12))


@pytest.mark.parametrize("share", [.1, .5, .95])
def test_every_imputed_pixel_is_the_mean_of_its_neighbours_and_the_others_stay(share):
    picture = a_picture(12, 17)
    removed = RNG.random(picture.shape) < share
    filled = erasure.impute(picture, removed)
    assert (filled[~removed] == picture[~removed]).all()
    for row, column in zip(*np.nonzero(removed), strict=True):
        assert filled[row, column] == pytest.approx(mean_of_neighbours(filled, row, column), abs=1e-4)


def test_the_imputed_pixels_are_those_of_a_dense_solution_from_any_guess():
    picture = a_picture(7, 9)
    removed = RNG.random(picture.shape) < .7
    places = [tuple(place) for place in np.argwhere(removed)]
    system, known = np.zeros((len(places), len(places))), np.zeros(len(places))
    for index, place in enumerate(places):
        own = np.zeros(picture.shape)
        for other in np.ndindex(*picture.shape):
            own[other] = 1
            weight = mean_of_neighbours(own, *place) if other != place else 0
            own[other] = 0
            if other in places:
                system[index, places.index(other)] -= weight
            else:
                known[index] += weight * picture[other]
        system[index, index] += 1
    dense = np.linalg.solve(system, known)
    for guess in (None, np.zeros_like(picture), np.ones_like(picture)):
        filled = erasure.impute(picture, removed, guess=guess)
        assert filled[removed] == pytest.approx(dense, abs=5e-4)


def test_a_hole_in_a_slope_is_filled_with_the_slope():
    rows, columns = np.mgrid[0:20, 0:26]
    slope = (rows + 2 * columns) / 80
    removed = np.zeros(slope.shape, bool)
    removed[5:14, 4:20] = True
    assert erasure.impute(np.where(removed, 9, slope), removed) == pytest.approx(slope, abs=1e-3)


def test_nothing_removed_changes_nothing():
    picture = a_picture()
    assert (erasure.impute(picture, np.zeros(picture.shape, bool)) == picture).all()


def a_world_that_looks_at_one_place():
    """Pictures with a bright spot, a network that answers by the spot alone, and maps good and bad."""
    rng, size, spot = np.random.default_rng(5), 32, np.zeros((32, 32), np.float32)
    spot[6:10, 20:25] = 1
    pictures = (rng.random((6, size, size)) * .2 + .7 * spot).astype(np.float32)

    def answer(made, case):
        return 1 / (1 + np.exp(-20 * ((made * spot).sum((1, 2)) / spot.sum() - .5)))

    maps = {"oracle": np.repeat(spot[None], 6, axis=0), "random": rng.random(pictures.shape)}
    return answer, pictures, {**maps, "wrong": 1 - maps["oracle"]}


def test_a_map_that_knows_the_place_beats_a_random_one_and_a_wrong_one_loses():
    answer, pictures, orders = a_world_that_looks_at_one_place()
    found = erasure.curves(answer, pictures, orders=orders)
    oracle, random, wrong = (found.areas(name) for name in ("oracle", "random", "wrong"))
    assert (oracle["deletion"] < random["deletion"]).all() and (random["deletion"] < wrong["deletion"]).all()
    assert (oracle["insertion"] > random["insertion"]).all()
    assert (random["insertion"] > wrong["insertion"]).all()
    assert (oracle["road"] > .4).all() and (wrong["road"] < -.4).all() and abs(random["road"].mean()) < .15
    assert oracle["road"] == pytest.approx((oracle["lerf"] - oracle["morf"]) / 2)


def test_orders_of_a_case_differ_by_nothing_but_the_order():
    answer, pictures, orders = a_world_that_looks_at_one_place()
    told = []
    found = erasure.curves(answer, pictures, orders={"a": orders["random"], "b": orders["random"]},
                           progress=lambda done, total: told.append((done, total)))
    for kind in ("deletion", "insertion", "morf", "lerf"):
        assert (getattr(found, kind)["a"] == getattr(found, kind)["b"]).all()
    assert told == [(case, 6) for case in range(1, 7)]


def test_pictures_made_for_the_network_stay_between_black_and_white():
    seen = []

    def answer(made, case):
        seen.append((made.dtype, made.min(), made.max()))
        return made.mean((1, 2))

    pictures = (RNG.random((2, 8, 8)) > .5).astype(np.float32)
    erasure.curves(answer, pictures, orders={"own": RNG.random(pictures.shape)})
    assert all(kind == np.float32 and low >= 0 and high <= 1 for kind, low, high in seen)


@pytest.mark.parametrize("change, message", [
    ({"pictures": np.zeros((0, 5, 7))}, "at least one"),
    ({"pictures": np.zeros((5, 7))}, r"\(5, 7\)"),
    ({"orders": {"own": np.zeros((2, 7, 5))}}, "own"),
    ({"fractions": (.1, 1)}, "rise from 0 to 1"),
    ({"fractions": (0, .5, .4, 1)}, "rise from 0 to 1"),
    ({"road_fractions": (0, .5)}, "ROAD")])
def test_curves_that_cannot_be_drawn_are_refused(change, message):
    fits = {"pictures": np.zeros((2, 5, 7)), "orders": {"own": np.zeros((2, 5, 7))}, **change}
    with pytest.raises(ValueError, match=message):
        erasure.curves(lambda made, case: made[:, 0, 0], fits.pop("pictures"), **fits)


@pytest.mark.parametrize("removed", [np.ones((5, 7), bool), np.zeros((7, 5), bool)])
def test_a_picture_without_a_pixel_left_cannot_be_imputed(removed):
    with pytest.raises(ValueError, match="leaves a pixel"):
        erasure.impute(np.zeros((5, 7)), removed)
