"""Text and batches."""

from minigpt_ext.data.batches import EvaluationWindows, random_windows
from minigpt_ext.data.corpora import Corpus, load_corpus, split

__all__ = ["Corpus", "EvaluationWindows", "load_corpus", "random_windows", "split"]
