"""What flows through a reduced model: Tokens (text and image), Decision (one reduction).

Letters: ``B`` batch, ``T`` text slots, ``V`` image slots, ``N`` slots of both, ``N0`` tokens that entered the model,
``K`` slots after a decision, ``D`` width, ``H`` heads, ``Dh`` head width.
"""

from pumer.kernels import GONE
from pumer.tokens.decision import Decision
from pumer.tokens.segments import Segments
from pumer.tokens.tokens import Tokens, attention_bias

__all__ = ["GONE", "Decision", "Segments", "Tokens", "attention_bias"]
