# Targets dmamba_hdf5, dmamba_zlib, dmamba_yaml, dmamba_spdlog, dmamba_json: the system's packages.
# Their headers are included in .cpp files only; none of their symbols leaves libdmamba.
find_package(HDF5 REQUIRED COMPONENTS C)
add_library(dmamba_hdf5 INTERFACE)
target_include_directories(dmamba_hdf5 SYSTEM INTERFACE ${HDF5_C_INCLUDE_DIRS})
target_link_libraries(dmamba_hdf5 INTERFACE ${HDF5_C_LIBRARIES})

# zlib comes with libhdf5-dev; by itself it is zlib1g-dev.
find_package(ZLIB REQUIRED)
add_library(dmamba_zlib INTERFACE)
target_link_libraries(dmamba_zlib INTERFACE ZLIB::ZLIB)

find_package(yaml-cpp REQUIRED)
add_library(dmamba_yaml INTERFACE)
target_link_libraries(dmamba_yaml INTERFACE yaml-cpp)

# Header-only use of spdlog and fmt: the library carries its own copy and needs neither at run time.
find_package(spdlog REQUIRED)
add_library(dmamba_spdlog INTERFACE)
get_target_property(spdlog_include spdlog::spdlog_header_only INTERFACE_INCLUDE_DIRECTORIES)
target_include_directories(dmamba_spdlog SYSTEM INTERFACE ${spdlog_include})
target_compile_definitions(dmamba_spdlog INTERFACE SPDLOG_FMT_EXTERNAL FMT_HEADER_ONLY)

find_package(nlohmann_json REQUIRED)
add_library(dmamba_json INTERFACE)
target_link_libraries(dmamba_json INTERFACE nlohmann_json::nlohmann_json)
