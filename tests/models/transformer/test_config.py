"""Invalid values of a config are refused."""

import dataclasses

import pytest

from tests.models import small


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ({"num_layers": 0}, ["num_layers is 0", "positive integer"]),
        ({"vocab_size": True}, ["vocab_size is True", "positive integer"]),
        ({"norm_eps": 0.0}, ["norm_eps is 0.0", "positive number"]),
        ({"rope_theta": float("nan")}, ["rope_theta is nan", "positive number"]),
        ({"family": "gpt2"}, ["family is 'gpt2'", "llama, mistral"]),
        ({"windows": (3,)}, ["windows is (3,)", "2 layers"]),
        ({"windows": (3, -1)}, ["windows is (3, -1)"]),
        ({"query_scalar": 0.0}, ["query_scalar is 0.0", "positive number"]),
        ({"final_softcap": -1.0}, ["final_softcap is -1.0", "positive number"]),
        ({"logits_divisor": 0.0}, ["logits_divisor is 0.0", "positive number"]),
    ],
)
def test_invalid_values_are_refused(extra, parts):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(small.CONFIGS["llama-grouped-tied"], **extra)
    small.assert_one_sentence(error, *parts)
