# Target dmamba_torch: LibTorch of the Python Python_EXECUTABLE, with the OpenMP that it brings. Where
# that has none, DMAMBA_TORCH_PROBLEM says so. DMamba's own build and find_package(dmamba) use this.
#
# find_package(Torch) is not used: with a CUDA build of torch it fails where no toolkit is found, and
# on a host without a GPU it asks nvcc for architectures that nvcc 13 has dropped.
set(DMAMBA_TORCH_PROBLEM "")
if(TARGET dmamba_torch)
  return()
endif()
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
    "import importlib.util, pathlib, runpy
spec = importlib.util.find_spec('torch')
if spec is None: raise SystemExit('torch is not installed')
root = pathlib.Path(spec.origin).parent
v = runpy.run_path(str(root / 'version.py'))
print(root, v['__version__'], v.get('cuda') or 'none', sep=';')"
  OUTPUT_VARIABLE torch_facts ERROR_VARIABLE torch_error RESULT_VARIABLE torch_result
  OUTPUT_STRIP_TRAILING_WHITESPACE)
if(NOT torch_result EQUAL 0)
  set(DMAMBA_TORCH_PROBLEM "DMamba builds against the torch of ${Python_EXECUTABLE}, and it has none: \
install torch 2.11 to 2.13 there first. (${torch_error})")
  return()
endif()
list(GET torch_facts 0 DMAMBA_TORCH_ROOT)
list(GET torch_facts 1 DMAMBA_TORCH_VERSION)
list(GET torch_facts 2 DMAMBA_TORCH_CUDA)
string(REGEX MATCH "^[0-9]+\\.[0-9]+" DMAMBA_TORCH_MINOR "${DMAMBA_TORCH_VERSION}")
if(DMAMBA_TORCH_VERSION VERSION_LESS 2.11)
  set(DMAMBA_TORCH_PROBLEM "DMamba needs torch 2.11 to 2.13, ${Python_EXECUTABLE} has \
${DMAMBA_TORCH_VERSION}: pip install 'torch>=2.11,<2.14'")
  return()
endif()

# torch's wheels bring their own OpenMP: a second one in the process would have threads of its own.
find_package(OpenMP REQUIRED COMPONENTS CXX)
file(GLOB torch_openmp "${DMAMBA_TORCH_ROOT}/lib/libgomp*.so*")
if(torch_openmp)
  list(GET torch_openmp 0 openmp_library)
  add_library(dmamba_openmp INTERFACE IMPORTED)
  target_compile_options(dmamba_openmp INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${OpenMP_CXX_FLAGS}>)
  target_link_libraries(dmamba_openmp INTERFACE "${openmp_library}")
else()
  add_library(dmamba_openmp ALIAS OpenMP::OpenMP_CXX)
endif()
add_library(dmamba_torch INTERFACE IMPORTED)
target_include_directories(dmamba_torch SYSTEM INTERFACE
  "${DMAMBA_TORCH_ROOT}/include" "${DMAMBA_TORCH_ROOT}/include/torch/csrc/api/include")
target_link_libraries(dmamba_torch INTERFACE
  "${DMAMBA_TORCH_ROOT}/lib/libtorch.so" "${DMAMBA_TORCH_ROOT}/lib/libtorch_cpu.so"
  "${DMAMBA_TORCH_ROOT}/lib/libc10.so" dmamba_openmp)
message(STATUS "DMamba: torch ${DMAMBA_TORCH_VERSION} (CUDA ${DMAMBA_TORCH_CUDA}) of ${DMAMBA_TORCH_ROOT}")
