"""What a device can do, asked before work begins that would take many times as long without it."""

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)


def multiplies_in_bfloat16(device: torch.device | str) -> bool:
    """Whether a device has instructions for bfloat16 products; a processor without them takes many times as long.

    True for what is not a CPU, and where PyTorch cannot tell.
    """
    if torch.device(device).type != "cpu":
        return True
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return True


def warn_of_slow_bfloat16(device: torch.device | str) -> None:
    """Say so where bfloat16 is asked for and the device emulates it."""
    if not multiplies_in_bfloat16(device):
        logger.warning(
            "this processor has no instructions for bfloat16 (AVX-512 on x86): products in it take up to thirty times as "
            "long as in float32; leave bf16 out"
        )
