# cmake --install BUILD --component development --prefix PREFIX: the library, its headers, and what
# find_package(dmamba CONFIG) reads. What belongs into a wheel is the component `python`, which only
# the Python build asks for, so `cmake --install BUILD --prefix PREFIX` does the same.
#
# Exported target: dmamba::dmamba, which brings dmamba_torch.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS dmamba EXPORT dmambaTargets COMPONENT development
  LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
  INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(TARGETS dmamba-check-file RUNTIME DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT development)
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/dmamba" COMPONENT development
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")

# The target's own RPATH is the wheel's, relative to site-packages. This copy lies elsewhere and looks
# for torch's libraries where they are: the same folders, absolute.
get_filename_component(site_packages "${DMAMBA_TORCH_ROOT}" DIRECTORY)
list(JOIN DMAMBA_INSTALL_RPATH ":" wheel_rpath)
set(development_rpath ${DMAMBA_INSTALL_RPATH})
list(REMOVE_ITEM development_rpath "$ORIGIN")
list(TRANSFORM development_rpath REPLACE "^\\$ORIGIN/\\.\\./" "${site_packages}/")
# In the build tree as well: that is where the room for it comes from.
set_target_properties(dmamba PROPERTIES BUILD_RPATH "${development_rpath}")
list(JOIN development_rpath ":" development_rpath)
install(CODE "file(RPATH_CHANGE
  FILE \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/libdmamba.so\"
  OLD_RPATH [[${wheel_rpath}]] NEW_RPATH [[${development_rpath}]])" COMPONENT development)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/dmamba")
install(EXPORT dmambaTargets NAMESPACE dmamba:: COMPONENT development DESTINATION "${package_dir}")
configure_package_config_file(cmake/dmambaConfig.cmake.in
  "${PROJECT_BINARY_DIR}/dmambaConfig.cmake" INSTALL_DESTINATION "${package_dir}")
write_basic_package_version_file(
  "${PROJECT_BINARY_DIR}/dmambaConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES cmake/Torch.cmake "${PROJECT_BINARY_DIR}/dmambaConfig.cmake"
  "${PROJECT_BINARY_DIR}/dmambaConfigVersion.cmake"
  COMPONENT development DESTINATION "${package_dir}")
