from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loss.targets import label_positives


@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), min_size=1, max_size=40),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
@settings(max_examples=100, deadline=None)
def test_labels_are_equal_exactly_where_ids_are(ids: list[int], cut: tuple[float, float]) -> None:
    first = int(cut[0] * (len(ids) - 1))
    num_rows = 1 + int(cut[1] * (len(ids) - first - 1))
    positives = label_positives(torch.tensor(ids), first, num_rows)
    labels = positives.y_labels.tolist()
    assert positives.y_labels.dtype == torch.int32
    for row in range(num_rows):
        same = [ids[first + row] == other for other in ids]
        assert [positives.x_labels[row].item() == label for label in labels] == same
        assert positives.counts[row].item() == sum(same)
