"""Caches: what is mapped equals what is computed, nothing is computed twice, and no kill breaks them."""

import multiprocessing
import os

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from dcaf_monai import features
from dcaf_monai.cohort import Case
from dcaf_monai.features import CacheError, Records, feature_cache, input_cache, trunk_sha256
from dcaf_monai.network import DualCrossAttentionFusion
from dcaf_monai.transforms import Preprocessing, read_input

SMALL = Preprocessing(size=64)
PAIR = ("test_efficientnet", "test_resnet")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    found = []
    for number in range(5):
        path = folder / f"{number}.png"
        Picture.fromarray(rng.integers(0, 255, (70 + number, 90), np.uint8)).save(path)
        found.append(Case(path.name, path, "normal", "train", f"g{number}"))
    return found


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return DualCrossAttentionFusion(2, backbones=PAIR, width=8, heads=2, fused=16, hidden=12).eval()


def test_cached_inputs_are_the_inputs_to_float16(cases, tmp_path):
    inputs = input_cache(cases, SMALL, tmp_path)
    found = inputs.tensor(np.array([3, 1]))
    expected = torch.stack([read_input(cases[index].path, SMALL)[1] for index in (3, 1)])
    assert found.shape == (2, 1, 64, 64) and found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-3


def test_only_new_files_are_read_again(cases, tmp_path, monkeypatch):
    read = []

    def counted(path, *args, **kwargs):
        read.append(path.name)
        return read_input(path, *args, **kwargs)

    monkeypatch.setattr(features, "read_input", counted)
    input_cache(cases[:3], SMALL, tmp_path)
    again = input_cache(cases[::-1], SMALL, tmp_path)
    assert read == ["0.png", "1.png", "2.png", "4.png", "3.png"]
    assert [case.uid for case in again.cases] == ["4.png", "3.png", "2.png", "1.png", "0.png"]
    first = input_cache(cases[:1], SMALL, tmp_path)
    assert torch.equal(again.tensor(np.array([4])), first.tensor(np.array([0])))


def test_a_file_that_changed_is_read_again_and_a_copy_is_not(cases, tmp_path):
    path = tmp_path / "film.png"
    path.write_bytes(cases[0].path.read_bytes())
    case = Case("film.png", path, "normal", "train", "g")
    both = input_cache([cases[0], case], SMALL, tmp_path)
    assert both.rows.tolist() == [0, 0]
    path.write_bytes(cases[1].path.read_bytes())
    assert input_cache([cases[0], case], SMALL, tmp_path).rows.tolist() == [0, 1]


def test_other_preprocessing_has_another_cache(cases, tmp_path):
    one = input_cache(cases[:1], SMALL, tmp_path)
    other = input_cache(cases[:1], Preprocessing(size=64, fit="stretch"), tmp_path)
    assert not np.array_equal(one.values[0], other.values[0])


def test_a_bad_file_and_a_missing_one_stop_nothing(cases, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    broken = [Case("bad.png", bad, "normal", "train", "b"),
              Case("gone.png", tmp_path / "gone.png", "normal", "train", "c")]
    inputs = input_cache([cases[0], *broken, cases[1]], SMALL, tmp_path)
    assert inputs.cases == (cases[0], cases[1])
    assert [case.uid for case, _ in inputs.refused] == ["bad.png", "gone.png"]
    assert inputs.refused[1][1].code == "missing"


def test_progress_counts_every_case(cases, tmp_path):
    told = []
    input_cache(cases, SMALL, tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(number, 5) for number in range(1, 6)]


def test_cached_features_are_the_trunks_features_to_float16(cases, tmp_path, network):
    inputs = input_cache(cases, SMALL, tmp_path)
    cached = feature_cache(inputs, network, tmp_path, batch_size=2)
    found = cached.features(np.array([4, 0, 2]))
    with torch.no_grad():
        expected = network.trunks(inputs.tensor(np.array([4, 0, 2])))
    for name in ("first_8", "first_16", "second_8", "second_16"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert mine.shape == theirs.shape
        assert torch.allclose(mine, theirs, rtol=2e-3, atol=2e-3), name


def test_features_of_known_images_are_not_computed_again(cases, tmp_path, network):
    computed = []
    for part in (cases[:3], cases, cases):
        told = []
        feature_cache(input_cache(part, SMALL, tmp_path), network, tmp_path, batch_size=2,
                      progress=lambda done, total, told=told: told.append(done))
        computed.append(max(told, default=0))
    assert computed == [3, 2, 0]


def test_other_trunks_or_other_preprocessing_have_another_cache(cases, tmp_path, network):
    other = DualCrossAttentionFusion(2, backbones=PAIR, width=8, heads=2, fused=16, hidden=12)
    assert trunk_sha256(other) != trunk_sha256(network)
    inputs = input_cache(cases[:1], SMALL, tmp_path)
    stretched = input_cache(cases[:1], Preprocessing(size=64, fit="stretch"), tmp_path)
    records = [feature_cache(given, trunks, tmp_path).values for given, trunks in
               ((inputs, network), (inputs, other), (stretched, network))]
    assert all(len(each) == 1 for each in records)
    assert not np.array_equal(records[0], records[1]) and not np.array_equal(records[0], records[2])
    assert len(list(tmp_path.glob("features-*"))) == 3


def test_the_head_does_not_decide_which_features_are_kept(network):
    before = trunk_sha256(network)
    with torch.no_grad():
        network.head[5].bias += 1
    assert trunk_sha256(network) == before


def test_records_come_back_by_key_in_any_number_of_appends(tmp_path):
    values = np.arange(30, dtype=np.float16).reshape(5, 2, 3)
    records = Records(tmp_path, (2, 3))
    records.append(["a", "b"], values[:2])
    records.append(["c"], values[2:3])
    again = Records(tmp_path, (2, 3))
    again.append(["d", "e"], values[3:])
    assert np.array_equal(Records(tmp_path, (2, 3)).values, values)
    assert again.row_of == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}


@pytest.mark.parametrize("torn", ["d", "def", ""])
def test_a_torn_line_and_data_without_a_line_are_written_over(tmp_path, torn):
    values = np.arange(12, dtype=np.float16).reshape(4, 3)
    Records(tmp_path, (3,)).append(["abc", "abd"], values[:2])
    with (tmp_path / "index.txt").open("a") as index:
        index.write(torn)
    with (tmp_path / "records.f16").open("ab") as data:
        data.write(b"half a rec")
    again = Records(tmp_path, (3,))
    assert list(again.row_of) == ["abc", "abd"]
    again.append(["def", "deg"], values[2:])
    back = Records(tmp_path, (3,))
    assert list(back.row_of) == ["abc", "abd", "def", "deg"] and np.array_equal(back.values, values)


def test_a_line_whose_data_was_lost_names_nothing(tmp_path):
    Records(tmp_path, (3,)).append(["a", "b"], np.ones((2, 3), np.float16))
    data = tmp_path / "records.f16"
    os.truncate(data, data.stat().st_size - 1)
    assert Records(tmp_path, (3,)).row_of == {"a": 0}


def append_for_ever(folder, sender):
    records = Records(folder, (1000,))
    with records.alone():
        for number in range(len(records.row_of), 10**6):
            records.append([f"{number:064d}"], np.full((1, 1000), number % 1000, np.float16))
            sender.send(number)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_process_killed_while_appending_leaves_a_cache_that_goes_on(tmp_path):
    context = multiprocessing.get_context("fork")
    for wait in (3, 11, 29):
        receiver, sender = context.Pipe(duplex=False)
        writer = context.Process(target=append_for_ever, args=(tmp_path, sender))
        writer.start()
        for _ in range(wait):
            receiver.recv()
        writer.kill()
        writer.join()
        records = Records(tmp_path, (1000,))
        assert len(records.row_of) >= wait
        for key, row in records.row_of.items():
            assert int(key) == row and (records.values[row] == row % 1000).all()


def test_values_float16_cannot_hold_are_refused(tmp_path):
    with pytest.raises(CacheError, match="values that float16 can hold"):
        Records(tmp_path, (2,)).append(["a"], np.array([[1.0, np.inf]]))
    assert Records(tmp_path, (2,)).row_of == {}


def test_values_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"need \(1, 2\), got \(1, 3\)"):
        Records(tmp_path, (2,)).append(["a"], np.zeros((1, 3)))


def test_a_disk_too_small_is_refused_before_work_begins(tmp_path):
    with pytest.raises(CacheError, match=r"need \d+ MiB of free disk for 1000000 images"):
        Records(tmp_path, (10**9,)).require_room(10**6)


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CacheError, match="cannot make its folder"):
        Records(tmp_path / "file", (2,))
