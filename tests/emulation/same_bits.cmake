# Runs PROGRAM CHECKS twice, with threads in another order, and with what is done beside them late and
# early: it has to pass, and to say the same, the digest of its results included.
set(orders 1 backward)
set(asyncs late early)
foreach(run 0 1)
  list(GET orders ${run} order)
  list(GET asyncs ${run} async)
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -E env
      DMAMBA_EMULATION_ORDER=${order} DMAMBA_EMULATION_ASYNC=${async} "${PROGRAM}" ${CHECKS}
    OUTPUT_VARIABLE words_${run} RESULT_VARIABLE status)
  message("order ${order}, ${async}:\n${words_${run}}")
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "exit status ${status}")
  endif()
endforeach()
if(NOT words_0 MATCHES "digest of the results: [0-9a-f]+" OR NOT words_0 STREQUAL words_1)
  message(FATAL_ERROR "the two runs differ")
endif()
