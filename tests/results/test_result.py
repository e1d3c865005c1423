"""What is read off a result, and its file."""

import dataclasses
import json
import pathlib
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from jax_power_smc import PowerTarget, SampleInfo, SampleResult
from jax_power_smc.results.diagnostics import diagnose
from jax_power_smc.results.result import FORMAT, PHASES, concatenate

INF = -np.inf
WEIGHTS = [[0.5, 0.3, 0.2], [0.0, 0.6, 0.4]]


def make(weights=WEIGHTS, *, offset=0, target=None):
    """Two prompts of three particles, cap 4, end token 1."""
    with np.errstate(divide="ignore"):
        log_weights = jnp.asarray(np.log(weights), jnp.float32)
    tokens = [
        [[2, 1, 0, 0], [0, 0, 0, 0], [2, 3, 1, 0]],
        [[3, 3, 3, 1], [2, 2, 2, 2], [2, 0, 1, 0]],
    ]
    sequences = {
        "tokens": np.asarray(tokens, np.int32),
        "lengths": np.asarray([[2, 4, 3], [4, 4, 3]], np.int32),
        "finished": np.asarray([[True, False, True], [True, False, True]]),
    }
    parent = np.broadcast_to(np.arange(3, dtype=np.int32), (2, 4, 3)).copy()
    rows = np.array([[0, 1, 2], [0, 1, 2]], np.int32)
    return SampleResult(
        **{name: jnp.asarray(x) for name, x in sequences.items()},
        log_probs=jnp.asarray([[-3.0, -2.0, -1.0], [-0.1, -5.0, -4.0]]),
        token_log_probs=jnp.asarray(np.arange(24).reshape(2, 3, 4) / -8, jnp.float32),
        log_weights=log_weights,
        log_evidence=jnp.asarray([-1.0 + offset, -2.0 + offset]),
        choice=jnp.asarray([1, 2], jnp.int32),
        target=target or PowerTarget(4.0, (1,), min_new_tokens=1, top_p=0.9),
        info=SampleInfo(
            ess=np.full((2, 4), 2.5, np.float32),
            resampled=np.zeros((2, 4), bool),
            forks=np.zeros((2, 4), np.int32),
            parent=parent,
            particle_index=rows,
            **diagnose(
                **sequences, log_weights=np.asarray(log_weights), parent=parent, particle_index=rows
            )._asdict(),
            bad_logits=np.array([False, False]),
            dropped_mass=np.array([0.0, 1e-5], np.float32),
            acceptance_rate=np.array([np.nan, 0.25]),
            model_tokens=np.array([6, 7], np.int32),
            drawn_tokens=np.array([9, 11], np.int32),
            num_rows=np.array([[2, 2, 1, 0], [3, 2, 1, 0]], np.int32),
            copies=np.array([1, 2], np.int32),
            preempted=np.array([0, 1], np.int32),
            seconds={"compile": 1.0, "prefill": 0.25, "decode": 0.5},
        ),
    )


def same(one, two):
    for field in dataclasses.fields(SampleResult):
        if field.name not in ("target", "info"):
            left, right = getattr(one, field.name), getattr(two, field.name)
            assert left.dtype == right.dtype and isinstance(right, type(left))
            np.testing.assert_array_equal(left, right, err_msg=field.name)
    for field in dataclasses.fields(SampleInfo):
        left, right = getattr(one.info, field.name), getattr(two.info, field.name)
        if field.name == "seconds":
            assert left == right
        else:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right, err_msg=field.name)
    assert one.target == two.target


def test_sequences_have_no_padding_but_keep_drawn_zeros():
    assert make().sequences() == [
        [[2, 1], [0, 0, 0, 0], [2, 3, 1]],
        [[3, 3, 3, 1], [2, 2, 2, 2], [2, 0, 1]],
    ]


def test_draw_is_the_chosen_particle():
    assert make().draw() == [[0, 0, 0, 0], [2, 0, 1]]


def test_best_is_the_most_probable_particle_of_positive_weight():
    result = make()
    assert result.best_index().tolist() == [2, 2]
    assert result.best() == [[2, 3, 1], [2, 0, 1]]


def test_vote_adds_weights():
    answers = [["a", "b", "b"], ["x", "y", "z"]]
    assert make().vote(answers) == ["a", "y"]
    assert make([[0.4, 0.3, 0.3], [1.0, 0.0, 0.0]]).vote(answers) == ["b", "x"]


def test_vote_leaves_out_no_answer_and_weight_zero():
    result = make()
    assert result.vote([[None, None, "c"], ["x", None, None]]) == ["c", None]


def test_vote_gives_a_tie_to_the_first():
    answers = [["a", "b", None], ["b", "a", None]]
    assert make([[0.25, 0.25, 0.5]] * 2).vote(answers) == ["a", "b"]


@pytest.mark.parametrize("answers", [[["a"] * 3], [["a"] * 2] * 2, [["a"] * 3] * 3])
def test_vote_refuses_another_shape(answers):
    with pytest.raises(ValueError, match="2 lists, one per prompt, of 3 answers"):
        make().vote(answers)


@pytest.mark.parametrize("answers", [["abc", "def"], 5, "ab", [[1, 2, 3], 5]], ids=repr)
def test_vote_does_not_take_text_for_a_list(answers):
    with pytest.raises(ValueError, match=r"answers must be 2 lists, .* of 3 answers"):
        make().vote(answers)


def test_vote_takes_generators_and_refuses_what_cannot_be_counted():
    assert make().vote(iter([("x", "y", "y"), ["x", None, None]])) == ["x", None]
    with pytest.raises(ValueError, match=r"answers has \['y'\]; every answer must be hashable"):
        make().vote([["x", "y", "y"], ["x", ["y"], "y"]])


def test_texts_go_through_the_tokenizer_without_special_tokens():
    class Tokenizer:
        def decode(self, ids, skip_special_tokens):
            assert skip_special_tokens
            return "".join("abcd"[i] for i in ids if i != 1)

    assert make().texts(Tokenizer()) == [["c", "aaaa", "cd"], ["ddd", "cccc", "ca"]]


def test_failures_name_prompts_without_any_weight():
    dead = dataclasses.replace(make(), log_weights=jnp.asarray([[INF] * 3, [0.0, INF, INF]]))
    first, second = dead.failures()
    assert "all particles have weight zero" in first and second is None
    assert make().failures() == [None, None]


def test_failures_name_a_broken_model_whatever_the_weights():
    info = dataclasses.replace(make().info, bad_logits=np.array([False, True]))
    first, second = dataclasses.replace(make(), info=info).failures()
    assert first is None and "invalid logits" in second


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 broken"])
def test_a_file_that_is_not_a_result_is_refused(tmp_path, content):
    (tmp_path / "one.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"one\.npz is not a saved SampleResult"):
        SampleResult.load(tmp_path / "one.npz")
    np.savez(tmp_path / "two.npz", tokens=np.zeros(3))
    with pytest.raises(ValueError, match=r"two\.npz is not a saved SampleResult"):
        SampleResult.load(tmp_path / "two.npz")


def entries(tmp_path):
    """What a saved file holds, by name."""
    make().save(tmp_path / "whole.npz")
    with np.load(tmp_path / "whole.npz") as file:
        return dict(file)


def meta(found, **changes):
    return {"meta": np.array(json.dumps(json.loads(str(found["meta"])) | changes))}


# From the entries of a file: what is changed, and what the error says.
MISFITS = {
    "later": (lambda f: meta(f, format=4), "its format is 4 and this version reads up to 3"),
    "no format number": (lambda f: meta(f, format="new"), "its format is 'new'"),
    "no entry": (
        lambda f: {"choice": None, "info_particle_index": None},
        "it has no choice, info_",
    ),
    "dtype": (lambda f: {"lengths": f["lengths"] * 1.0}, "its lengths is float64.2, 3., which"),
    "lengths": (lambda f: {"lengths": f["lengths"] + 99}, "its lengths do not lie in"),
    "negative": (lambda f: {"lengths": f["lengths"] - 99}, "its lengths do not lie in"),
    "choice": (lambda f: {"choice": f["choice"] + 3}, "its choice does not lie in .0, 3"),
    "rank": (lambda f: {"choice": f["choice"][:, None]}, "its choice is int32.2, 1., which"),
    "shape": (lambda f: {"log_probs": f["log_probs"][:, :2]}, "its log_probs is float32.2, 2., "),
    "prompts": (lambda f: {"choice": f["choice"][:1]}, "its choice is int32.1., which does not"),
    "object": (lambda f: {"choice": np.array([{}, 1], object)}, "ValueError"),
    "text": (lambda f: {"meta": np.array("[")}, "JSONDecodeError"),
    "list": (lambda f: {"meta": np.array("[]")}, "AttributeError"),
    "target": (lambda f: meta(f, target={"alpha": 2.0, "beta": 1.0}), "TypeError"),
    "alpha": (lambda f: meta(f, target={"alpha": 0.5}), "ValueError"),
    "no rule": (lambda f: meta(f, target={"alpha": 2.0, "stop": {"rule": "re"}}), "KeyError"),
    "seconds": (lambda f: meta(f, seconds={}), "KeyError"),
}


@pytest.mark.parametrize("name", list(MISFITS))
def test_a_file_of_another_version_is_one_sentence(tmp_path, name):
    found = entries(tmp_path)
    change, message = MISFITS[name]
    changed = {k: v for k, v in (found | change(found)).items() if v is not None}
    np.savez(tmp_path / "other.npz", **changed)
    with pytest.raises(ValueError, match=rf"other\.npz is not a saved .*\({message}") as caught:
        SampleResult.load(tmp_path / "other.npz")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(").")


def test_a_damaged_file_is_one_sentence(tmp_path):
    make().save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "damaged.npz"
    flipped = [
        whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in range(0, len(whole), 97)
    ]
    for damaged in [whole[: len(whole) * part // 8] for part in range(8)] + flipped:
        path.write_bytes(damaged)
        try:
            SampleResult.load(path)  # not every byte is one that is read
        except ValueError as error:
            assert f"{path} is not a saved SampleResult" in str(error)


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "object.npz", **entries(tmp_path) | {"choice": np.array([Trap()])})
    np.save(tmp_path / "array.npz", np.array([Trap()]), allow_pickle=True)
    (tmp_path / "array.npz.npy").rename(tmp_path / "array.npz")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Trap()))
    for name in ("object", "array", "pickle"):
        with pytest.raises(ValueError, match=rf"{name}\.npz is not a saved SampleResult"):
            SampleResult.load(tmp_path / f"{name}.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("said", [{}, {"format": 1}])
def test_files_of_the_first_format_are_read(tmp_path, said):
    # They had another name for one array, and the very first did not say their format.
    found = entries(tmp_path)
    found["info_rows"] = found.pop("info_particle_index")
    known = json.loads(str(found["meta"]))
    assert known.pop("format") == FORMAT
    np.savez(tmp_path / "first.npz", **found | {"meta": np.array(json.dumps(known | said))})
    same(make(), SampleResult.load(tmp_path / "first.npz"))


@pytest.mark.parametrize("form", [1, 2])
def test_files_of_the_engine_with_a_row_per_particle_are_read(tmp_path, form):
    # Their model_tokens are what the particles drew, and they know nothing of rows.
    found, result = entries(tmp_path), make()
    for name in ("num_rows", "copies", "preempted"):
        del found[f"info_{name}"]
    found["info_model_tokens"] = found.pop("info_drawn_tokens")
    del found["token_log_probs"]
    known = json.loads(str(found["meta"])) | {"format": form}
    np.savez(tmp_path / "older.npz", **found | {"meta": np.array(json.dumps(known))})
    loaded = SampleResult.load(tmp_path / "older.npz")
    np.testing.assert_array_equal(loaded.info.drawn_tokens, result.info.drawn_tokens)
    np.testing.assert_array_equal(loaded.tokens, result.tokens)
    assert loaded.info.num_rows.shape == (2, 4) and not loaded.info.num_rows.any()
    assert np.isnan(loaded.token_log_probs).all()


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path):
    path = tmp_path / "one.npz"
    make().save(path)
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    same(make(), SampleResult.load(path, most_bytes=size))
    with pytest.raises(ValueError, match=rf"it unpacks to {size} bytes; most_bytes is {size - 1}"):
        SampleResult.load(path, most_bytes=size - 1)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.npy", bytes(2**25))
    assert path.stat().st_size < 2**16
    with pytest.raises(ValueError, match="it unpacks to 3355"):
        SampleResult.load(path, most_bytes=2**20)


@pytest.mark.parametrize("shape", ["(10, 10**9)", "(10**12,)", "(-1,)", "(3, 2)"])
def test_a_shape_is_compared_with_the_size_first(tmp_path, shape):
    make().save(tmp_path / "one.npz")
    with (
        zipfile.ZipFile(tmp_path / "one.npz") as source,
        zipfile.ZipFile(tmp_path / "other.npz", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name == "choice.npy":
                header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {eval(shape)}, }}"
                content = content[:8] + len(header).to_bytes(2, "little") + header.encode()
            target.writestr(name, content)
    with pytest.raises(ValueError, match=r"choice.npy is not as large as its shape \("):
        SampleResult.load(tmp_path / "other.npz")


def test_no_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        SampleResult.load(tmp_path / "none.npz")


@pytest.mark.parametrize("suffix", ["npz", "result"])
def test_save_and_load_give_the_same_back(tmp_path, suffix):
    result = make()
    path = tmp_path / f"one.{suffix}"
    result.save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    same(result, SampleResult.load(path))


def test_save_and_load_keep_no_evidence(tmp_path):
    result = dataclasses.replace(make(), log_evidence=jnp.asarray([jnp.nan, -jnp.inf]))
    result.save(str(tmp_path / "one.npz"))
    same(result, SampleResult.load(str(tmp_path / "one.npz")))


@pytest.mark.parametrize(
    "target",
    [
        PowerTarget(np.float32(4.0), (1,)),
        PowerTarget(2.0, np.array([1, 3]), min_new_tokens=np.int64(1), top_k=np.int32(3)),
    ],
    ids=["alpha", "integers"],
)
def test_a_target_of_numpy_numbers_can_be_saved(tmp_path, target):
    result = make(target=target)
    result.save(tmp_path / "one.npz")
    assert SampleResult.load(tmp_path / "one.npz").target == target


def test_one_prompt_alone():
    both = make()
    for place in range(2):
        one = both.one(place)
        assert one.draw() == [both.draw()[place]] and one.best() == [both.best()[place]]
        assert one.sequences() == [both.sequences()[place]]
        assert one.failures() == [both.failures()[place]]
        for name in ("log_weights", "log_evidence", "finished"):
            whole = np.asarray(getattr(both, name))
            np.testing.assert_array_equal(getattr(one, name), whole[place : place + 1])
        np.testing.assert_array_equal(
            one.info.particle_index, both.info.particle_index[place : place + 1]
        )
        assert one.target == both.target and one.info.seconds == both.info.seconds


@pytest.mark.parametrize("index", [np.int64(1), np.uint8(1), jnp.int32(1), np.array(1)], ids=repr)
def test_an_index_may_be_of_numpy_or_jax(index):
    assert make().one(index).draw() == [make().draw()[1]]


@pytest.mark.parametrize("index", [2, 5, -1, np.int32(-2)])
def test_an_index_out_of_range_is_refused(index):
    with pytest.raises(IndexError, match=rf"^index is {index}; it must lie in \[0, 2\)\.$"):
        make().one(index)


@pytest.mark.parametrize("index", [True, np.True_, 1.0, "1", None, slice(1), [1]], ids=repr)
def test_an_index_is_an_integer(index):
    with pytest.raises(ValueError, match=r"^index is .*; it must be an integer"):
        make().one(index)


def test_concatenate_joins_and_reorders():
    one, two = make(), make([[0.2, 0.2, 0.6], [1.0, 0.0, 0.0]], offset=10)
    joined = concatenate([one, two], np.array([2, 0, 3, 1]))
    np.testing.assert_array_equal(joined.log_evidence, [9.0, -1.0, 8.0, -2.0])
    np.testing.assert_array_equal(joined.log_weights[1], one.log_weights[0])
    np.testing.assert_array_equal(joined.log_weights[2], two.log_weights[1])
    assert joined.draw() == [one.draw()[0], one.draw()[0], one.draw()[1], one.draw()[1]]
    assert joined.info.drawn_tokens.tolist() == [9, 9, 11, 11]
    assert set(joined.info.seconds) == set(PHASES)
    assert joined.info.seconds["prefill"] == 0.5 and joined.target == one.target
