"""Examples, batches of them, and the datasets of the paper, read from their authors' files."""

from textautograd.data.bbh import BBH
from textautograd.data.example import Example
from textautograd.data.gsm8k import GSM8K
from textautograd.data.liar import LIAR
from textautograd.data.loader import DataLoader
from textautograd.data.sampling import random_split

__all__ = ["BBH", "GSM8K", "LIAR", "DataLoader", "Example", "random_split"]
