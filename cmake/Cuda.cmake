# DMAMBA_CUDA: whether the ops get their CUDA side (kernels/ and src/ops/cuda).
#
#   AUTO  where torch is a CUDA build and an nvcc of its major version is found; else the CPU's alone
#   ON    or an error that says what is missing
#   OFF   the CPU's alone
#
# Leaves DMAMBA_WITH_CUDA, DMAMBA_INSTALL_RPATH, DMAMBA_CUDA_ARCHITECTURES (empty without CUDA) and
# DMAMBA_CUDA_REASON (why it is without), which `dmamba info` shows.
# Architectures are CMake's own CMAKE_CUDA_ARCHITECTURES; "90" is machine code and PTX of 9.0.
set(DMAMBA_CUDA AUTO CACHE STRING "CUDA ops: AUTO, ON or OFF")
set_property(CACHE DMAMBA_CUDA PROPERTY STRINGS AUTO ON OFF)
string(TOUPPER "${DMAMBA_CUDA}" dmamba_cuda)
if(NOT dmamba_cuda MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "DMAMBA_CUDA must be AUTO, ON or OFF, got '${DMAMBA_CUDA}'")
endif()

set(DMAMBA_INSTALL_RPATH "$ORIGIN" "$ORIGIN/../torch/lib")

# The toolkit is looked for by hand: enable_language(CUDA) ends the configuration where it fails.
set(DMAMBA_CUDA_REASON "")
if(dmamba_cuda STREQUAL "OFF")
  set(DMAMBA_CUDA_REASON "built with DMAMBA_CUDA=OFF")
elseif(DMAMBA_TORCH_CUDA STREQUAL "none")
  set(DMAMBA_CUDA_REASON "built with torch ${DMAMBA_TORCH_VERSION}, which is for the CPU only")
else()
  string(REGEX MATCH "^[0-9]+" torch_cuda_major "${DMAMBA_TORCH_CUDA}")
  if(NOT CMAKE_CUDA_COMPILER AND NOT "$ENV{CUDACXX}" STREQUAL "")
    set(CMAKE_CUDA_COMPILER "$ENV{CUDACXX}")
  endif()
  find_program(CMAKE_CUDA_COMPILER nvcc
    HINTS "${CUDAToolkit_ROOT}/bin" "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin"
    PATHS /usr/local/cuda/bin "/usr/local/cuda-${DMAMBA_TORCH_CUDA}/bin")
  if(NOT CMAKE_CUDA_COMPILER)
    set(DMAMBA_CUDA_REASON
      "built without nvcc, none was found for torch's CUDA ${DMAMBA_TORCH_CUDA}")
  else()
    execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --version OUTPUT_VARIABLE nvcc_words)
    string(REGEX MATCH "release ([0-9]+)\\.([0-9]+)" nvcc_release "${nvcc_words}")
    if(NOT CMAKE_MATCH_1 STREQUAL torch_cuda_major)
      set(DMAMBA_CUDA_REASON "built without CUDA: ${CMAKE_CUDA_COMPILER} is of CUDA \
${CMAKE_MATCH_1}.${CMAKE_MATCH_2}, torch of CUDA ${DMAMBA_TORCH_CUDA}")
    endif()
  endif()
endif()

if(DMAMBA_CUDA_REASON)
  if(dmamba_cuda STREQUAL "ON")
    message(FATAL_ERROR "DMAMBA_CUDA=ON needs a CUDA build of torch in ${Python_EXECUTABLE} and an \
nvcc of the same CUDA major version (name it with -DCMAKE_CUDA_COMPILER=...): ${DMAMBA_CUDA_REASON}")
  endif()
  set(DMAMBA_WITH_CUDA OFF)
  set(DMAMBA_CUDA_ARCHITECTURES "")
  message(STATUS "DMamba: ops on the CPU only (${DMAMBA_CUDA_REASON})")
  return()
endif()

set(DMAMBA_WITH_CUDA ON)
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES 90)
endif()
# torch's libraries hold the shared runtime already: a second one in the process would have an error
# state of its own.
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
# CUDA sources are C++20 as all others are; CMake 3.25 doesn't know that nvcc speaks it since 12.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(DMAMBA_CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")

# dmamba_cuda: what host code that speaks to a device compiles and links with. torch_cuda itself is
# not needed: tensors go through the dispatcher, streams and guards lie in c10_cuda.
add_library(dmamba_cuda INTERFACE)
target_link_libraries(dmamba_cuda INTERFACE "${DMAMBA_TORCH_ROOT}/lib/libc10_cuda.so" CUDA::cudart)

# Where pip puts the runtime that torch depends on, seen from the installed package.
if(torch_cuda_major GREATER_EQUAL 13)
  list(APPEND DMAMBA_INSTALL_RPATH "$ORIGIN/../nvidia/cu${torch_cuda_major}/lib")
else()
  list(APPEND DMAMBA_INSTALL_RPATH "$ORIGIN/../nvidia/cuda_runtime/lib")
endif()
message(STATUS "DMamba: ops on CUDA too (nvcc ${CMAKE_CUDA_COMPILER_VERSION}, "
  "architectures ${CMAKE_CUDA_ARCHITECTURES})")
