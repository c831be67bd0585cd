"""Devices that lack instructions are named before work begins."""

import logging

import pytest
import torch
from tiny_pretraining import tiny_arguments

from graphmert import device_support


@pytest.mark.parametrize("supported", [True, False])
def test_bfloat16_on_a_processor_without_it_is_warned_of(tmp_path, caplog, monkeypatch, supported):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported, raising=False)
    assert device_support.multiplies_in_bfloat16("cpu") is supported
    assert device_support.multiplies_in_bfloat16("cuda")
    caplog.set_level(logging.WARNING)
    tiny_arguments(tmp_path, bf16=False)
    assert not caplog.records
    tiny_arguments(tmp_path, bf16=True)
    assert [("leave bf16 out" in record.getMessage()) for record in caplog.records] == ([] if supported else [True])


def test_where_pytorch_cannot_tell_nothing_is_said(monkeypatch):
    def unknown():
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", unknown, raising=False)
    assert device_support.multiplies_in_bfloat16("cpu")
