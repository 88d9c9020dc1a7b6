"""What a build says of CUDA, with and without it; the ops themselves are tested in cuda/."""

import pytest

import dmamba
from dmamba import _C, _build_info
from dmamba.commands import main


def test_info_gives_the_reason(capsys):
    assert main(["info"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("CUDA")]
    if _build_info.cuda_reason:
        assert line.split(maxsplit=1)[1] == f"no: {_build_info.cuda_reason}"
        assert not _build_info.cuda_architectures
    else:
        assert f"built for architectures {_build_info.cuda_architectures[:2]}" in line


def test_the_scans_plan_needs_cuda():
    if _build_info.cuda_reason:
        with pytest.raises(dmamba.Error, match="set_cuda_scan_plan: .* built without CUDA"):
            _C.set_cuda_scan_plan(64)
    else:
        _C.set_cuda_scan_plan(64)
        _C.set_cuda_scan_plan()


def test_the_token_chain_needs_cuda():
    if _build_info.cuda_reason:
        assert not _C.token_chain_enabled()
        with pytest.raises(dmamba.Error, match="set_token_chain: .* built without CUDA"):
            _C.set_token_chain(False)
    else:
        assert _C.token_chain_enabled()
        _C.set_token_chain(False)
        assert not _C.token_chain_enabled()
        _C.set_token_chain()
        assert _C.token_chain_enabled()
