"""Runs the reference implementation on the tiny checkpoints: needs torch (``make parity``).

python -m tests.parity.make_golden          writes what the tests compare with
python -m tests.parity.make_golden --check  compares with what is there, and writes nothing
"""

import json
import sys

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from tests.parity import cases

# Between runs of the reference on different machines and versions.
_REFERENCE_TOLERANCE = 2e-5


def reference(settings):
    """The reference's config as it saves it, the shapes of its tensors, and its logits."""
    config = AutoConfig.for_model(**settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    tensors = cases.random_tensors(shapes)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in tensors:
                tensor.copy_(torch.from_numpy(tensors[name]))
        logits = {
            str(length): _logits(model, cases.prompt(length))
            for length in (cases.SHORT, cases.LONG)
        }
        _check_left_padding(model, logits)
    saved = config.to_dict() | {"architectures": [type(model).__name__]}
    return saved, shapes, logits


def _logits(model, tokens):
    return model(torch.from_numpy(tokens)[None]).logits[0].numpy()


def _check_left_padding(model, logits):
    """A ragged batch as users of the reference make it gives them the same logits."""
    short = cases.prompt(cases.SHORT)
    batch = torch.zeros((2, 9), dtype=torch.int64)
    mask = torch.zeros((2, 9), dtype=torch.int64)
    batch[0, -3:], mask[0, -3:] = torch.from_numpy(short), 1
    batch[1], mask[1] = torch.arange(9), 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(batch, attention_mask=mask, position_ids=positions).logits[0, -3:].numpy()
    np.testing.assert_allclose(out, logits[str(cases.SHORT)], atol=_REFERENCE_TOLERANCE)


def main():
    check = "--check" in sys.argv[1:]
    cases.GOLDEN.mkdir(exist_ok=True)
    for name, settings in cases.CASES.items():
        config, shapes, logits = reference(settings)
        if check:
            kept, about = cases.read(name)
            assert about["shapes"] == {k: list(v) for k, v in shapes.items()}, name
            for length, array in logits.items():
                np.testing.assert_allclose(
                    array, kept[length], atol=_REFERENCE_TOLERANCE, err_msg=name
                )
            print(f"{name}: as recorded with {about['versions']}")
            continue
        about = {
            "config": json.loads(json.dumps(config, default=str)),
            "shapes": shapes,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        np.savez_compressed(cases.GOLDEN / f"{name}.npz", about=json.dumps(about), **logits)
        print(f"{name}: {sum(x.nbytes for x in logits.values())} bytes of logits")


if __name__ == "__main__":
    main()
