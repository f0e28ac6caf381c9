# The version is the header's. Compatible is what has the same major version and is not older;
# before 1.0, the same minor version as well, unless none is asked for.

foreach(_filetimer_up IN ITEMS .. ../../..)
  set(_filetimer_header "${CMAKE_CURRENT_LIST_DIR}/${_filetimer_up}/include/filetimer.h")
  if(EXISTS "${_filetimer_header}")
    file(STRINGS "${_filetimer_header}" _filetimer_line REGEX "^#define FILETIMER_VERSION \"")
    string(REGEX MATCH "([0-9]+)\\.([0-9]+)\\.[0-9]+" PACKAGE_VERSION "${_filetimer_line}")
    set(_filetimer_series "^${CMAKE_MATCH_1}(\\.|$)")
    if(CMAKE_MATCH_1 EQUAL 0)
      set(_filetimer_series "^0(\\.${CMAKE_MATCH_2}(\\.|$)|$)")
    endif()
    break()
  endif()
endforeach()

set(PACKAGE_VERSION_COMPATIBLE FALSE)
set(PACKAGE_VERSION_EXACT FALSE)
if(PACKAGE_FIND_VERSION MATCHES "${_filetimer_series}"
   AND NOT PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()

unset(_filetimer_up)
unset(_filetimer_header)
unset(_filetimer_line)
unset(_filetimer_series)
