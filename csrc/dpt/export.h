// csrc/dpt/export.h -- the export macro, alone so that files without torch can have it.
#pragma once

// What is not marked stays hidden inside libdpt.
#define DPT_API __attribute__((visibility("default")))
