"""What several tests of shortened prompts use."""

import pytest
from shortening.families import model_of

import pumer


@pytest.fixture
def model(family):
    """The family's model, which no test leaves patched."""
    yield model_of(family)
    pumer.unpatch(model_of(family))
