"""The decode engine on CPUs: packed weights in fp32, bf16, int8 or int4, and one C++ call a step."""

from .decoder import CACHE_DTYPES, FORMATS, Decoder
from .perplexity import perplexity

__all__ = ["CACHE_DTYPES", "FORMATS", "Decoder", "perplexity"]
