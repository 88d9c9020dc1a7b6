# dmamba_warnings: what every target of this project compiles with.
add_library(dmamba_warnings INTERFACE)
target_compile_options(dmamba_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-unused-parameter>)
option(DMAMBA_WERROR "Treat warnings as errors" OFF)
if(DMAMBA_WERROR)
  target_compile_options(dmamba_warnings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
