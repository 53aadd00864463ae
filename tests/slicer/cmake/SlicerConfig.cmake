# Stand-in for the configuration of a Slicer build tree, enough to package an extension of scripted modules.
#
# It is stricter than Slicer: a file of a module that CMake does not list, and a value of the extension's
# description that is not set, are errors here.

set(Slicer_FOUND TRUE)
set(Slicer_VERSION "5.10.0")
set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${CMAKE_CURRENT_LIST_DIR}/GenerateConfig.cmake")
set(Slicer_EXTENSION_CPACK "${CMAKE_CURRENT_LIST_DIR}/CPack.cmake")
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR "lib/Slicer-5.10/qt-scripted-modules")
set(Slicer_SHARE_DIR "share/Slicer-5.10")
