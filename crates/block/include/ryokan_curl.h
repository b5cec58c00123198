/* Read before every C source that cargo builds (.cargo/config.toml): the build script of crate
   curl-sys leaves TFTP out of libcurl; this takes it in again. */
#undef CURL_DISABLE_TFTP
