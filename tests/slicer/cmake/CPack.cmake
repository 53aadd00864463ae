# The last thing an extension includes: a folder that holds a module and was not added is an error.

get_property(modules GLOBAL PROPERTY SLICER_MODULES)
file(GLOB folders RELATIVE "${CMAKE_SOURCE_DIR}" "${CMAKE_SOURCE_DIR}/*")
foreach(folder ${folders})
  if(EXISTS "${CMAKE_SOURCE_DIR}/${folder}/${folder}.py" AND NOT folder IN_LIST modules)
    message(FATAL_ERROR "${folder}: need the module to be added, got only its folder. Call add_subdirectory(${folder}).")
  endif()
endforeach()
if(NOT EXISTS "${CMAKE_SOURCE_DIR}/LICENSE")
  message(FATAL_ERROR "LICENSE: need one in the extension's root folder, got none.")
endif()
