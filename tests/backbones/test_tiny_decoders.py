"""Are the tiny decoders' inputs right? What stock transformers says to a prompt depends on it alone, not on the batch."""

import pytest
import torch

from tiny.decoders import DECODERS, PAD, WORDS, text


def _generated(model, inputs):
    return model.generate(
        **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
    )


@pytest.mark.parametrize("family", DECODERS)
def test_a_padded_batch_says_what_each_prompt_says_alone(family):
    tiny = DECODERS[family]
    model = tiny.model().double()
    samples = [tiny.sample(0), tiny.sample(1, images=2, before=7, after=3)]
    whole = _generated(model, tiny.batch(samples))
    logits = torch.stack(whole.logits, dim=1)
    assert logits.shape[:2] == (2, 4) and all(word in WORDS for word in whole.sequences[:, -4:].flatten().tolist())
    for i, sample in enumerate(samples):
        alone = _generated(model, tiny.batch([sample]))
        torch.testing.assert_close(torch.stack(alone.logits, dim=1)[0], logits[i], rtol=0, atol=1e-9)
