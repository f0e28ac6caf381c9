# find_package(filetimer) gives the target filetimer::filetimer: C99 and up, C++, CUDA host code.
#
# This file works where it lies: in a checkout and in a Python package include/ is beside its
# folder; in PREFIX/share/cmake/filetimer it is three levels up.

include(CMakeFindDependencyMacro)
find_dependency(Threads) # glibc before 2.32 has pthread_sigmask in a library of its own

foreach(_filetimer_up IN ITEMS .. ../../..)
  get_filename_component(_filetimer_include "${CMAKE_CURRENT_LIST_DIR}/${_filetimer_up}/include"
                         ABSOLUTE)
  if(EXISTS "${_filetimer_include}/filetimer.h")
    set(filetimer_INCLUDE_DIR "${_filetimer_include}")
    break()
  endif()
endforeach()

if(NOT filetimer_INCLUDE_DIR)
  set(filetimer_FOUND FALSE)
  set(filetimer_NOT_FOUND_MESSAGE "filetimer.h is not where ${CMAKE_CURRENT_LIST_FILE} expects it.")
elseif(NOT TARGET filetimer::filetimer)
  add_library(filetimer::filetimer INTERFACE IMPORTED)
  set_target_properties(
    filetimer::filetimer PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${filetimer_INCLUDE_DIR}"
                                    INTERFACE_LINK_LIBRARIES Threads::Threads)
endif()

unset(_filetimer_up)
unset(_filetimer_include)
