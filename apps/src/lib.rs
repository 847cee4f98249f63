//! placeholder replaced by the first module
