"""Attention mechanisms as classes over a memory of keys and values."""

from .base import Attention
from .dense import (
    DotProductAttention,
    FlashAttention,
    LocalGlobalAttention,
    MultiHeadAttention,
)

__all__ = [
    "Attention",
    "DotProductAttention",
    "FlashAttention",
    "LocalGlobalAttention",
    "MultiHeadAttention",
]
