"""Types of the module that the build writes from bindings/build_info.py.in."""

version: str
torch_version: str
torch_minor: str
torch_cuda: str
compiler: str
build_type: str
cuda_architectures: str
cuda_reason: str
