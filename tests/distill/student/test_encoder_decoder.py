"""An encoder-decoder student: cut at its first label, and asked where its decoder predicts it."""

import numpy as np
import pytest
import torch

from distill.evaluation.forward import ask, batch_of
from distill.head.student_head import StudentHead
from distill.student.encoder_decoder import Sides
from logitstore.records import NO_LABEL
from logitstore.testing import tiny
from logitstore.text.tokenizer import ByteTokenizer
from tests.kit.students import t5

SEQUENCES = [np.array([5, 6, 7, 8, 9]), np.array([11, 12, 13]), np.array([20])]
PLACES = [np.array([2, 3, 4]), np.array([1]), np.array([], np.int64)]


def test_the_prompt_goes_to_the_encoder_and_the_rest_to_the_decoder() -> None:
    batch = Sides(start_id=1, eos_id=2, pad_id=0).cut(batch_of(SEQUENCES, PLACES, 0))
    assert batch["input_ids"].tolist() == [[5, 6, 2], [11, 2, 0], [20, 2, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]
    assert batch["decoder_input_ids"].tolist() == [[1, 7, 8, 9], [1, 12, 13, 0], [1, 0, 0, 0]]
    assert batch["labels"].tolist()[0] == [NO_LABEL, 7, 8, 9]
    assert batch["labels"].tolist()[1] == [NO_LABEL, 12, NO_LABEL, NO_LABEL]
    assert batch["rows"].tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("chunk_tokens", [2, 100])
def test_labels_are_predicted_as_the_model_itself_predicts_them(chunk_tokens: int) -> None:
    model = t5()
    sides = Sides.of(model, ByteTokenizer(tiny.byte_bpe()))
    assert sides is not None
    head = StudentHead(model, chunk_tokens=chunk_tokens)
    found = ask(model, head, batch_of(SEQUENCES, PLACES, 0), sides).label_logprob_N
    assert not head.dense
    expected = []
    for ids, places in zip(SEQUENCES[:2], PLACES[:2], strict=True):
        first = int(places[0])
        prompt = torch.tensor([[*ids[:first].tolist(), sides.eos_id]])
        labels = torch.tensor([ids[first:].tolist()])
        with torch.no_grad():  # the model shifts its labels to the right by itself
            logits = model(input_ids=prompt, labels=labels).logits[0].log_softmax(-1)
        expected += [float(logits[p - first, ids[p]]) for p in places]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_causal_model_is_left_alone() -> None:
    assert Sides.of(tiny.llama(300), ByteTokenizer(tiny.byte_bpe())) is None
