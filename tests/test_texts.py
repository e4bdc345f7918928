from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cloudai import texts
from cloudai.artifacts import trees


@given(hnp.arrays(object, hnp.array_shapes(max_dims=3, min_side=0), elements=st.text(max_size=6)))
def test_texts_survive_files_of_numbers(array):
    assert texts.unpack(*texts.pack(array)).tolist() == array.tolist()
    again = trees.load(trees.dump({"text": array}))["text"]
    assert again.shape == array.shape
    assert again.tolist() == array.tolist()


@pytest.mark.parametrize("ends", [[1, 2], [3, 4], [5, 2], [2, 1, 4]])
def test_ends_that_do_not_fit_are_refused(ends):
    content = np.frombuffer(b"four", np.uint8)
    if ends == [3, 4]:
        assert texts.unpack(content, np.array(ends)).tolist() == ["fou", "r"]
    else:
        with pytest.raises(ValueError, match="do not fit"):
            texts.unpack(content, np.array(ends))


def test_objects_that_are_no_texts_are_not_saved_as_such():
    assert not texts.is_text(np.array(["a", 1], dtype=object))
    assert texts.first_bad(np.array(["a", "\ud800"], dtype=object)) == (1, "\ud800")
