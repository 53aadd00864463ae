# Writes the description that the Extensions Manager would read, for the test to read.

get_property(modules GLOBAL PROPERTY SLICER_MODULES)
get_property(unittests GLOBAL PROPERTY SLICER_UNITTESTS)
set(text "name=${PROJECT_NAME}\nmodules=${modules}\nunittests=${unittests}\n")
foreach(value HOMEPAGE CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS)
  string(APPEND text "${value}=${EXTENSION_${value}}\n")
endforeach()
file(WRITE "${CMAKE_BINARY_DIR}/${PROJECT_NAME}.txt" "${text}")
install(FILES "${CMAKE_BINARY_DIR}/${PROJECT_NAME}.txt" DESTINATION "${Slicer_SHARE_DIR}")
