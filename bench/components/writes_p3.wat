;; Writes COUNT times SIZE bytes to standard output, by a stream of 0.3.
(component
  (import "wasi:cli/types@0.3.0" (instance $types
    (type $defined (enum "io" "illegal-byte-sequence" "pipe"))
    (export "error-code" (type (eq $defined)))))
  (alias export $types "error-code" (type $error-code))
  (import "wasi:cli/stdout@0.3.0" (instance $stdout
    (alias outer 1 $error-code (type $outer-code))
    (export "error-code" (type $error-code (eq $outer-code)))
    (export "write-via-stream" (func
      (param "data" (stream u8))
      (result (future (result (error $error-code))))))))

  (core module $memory (memory (export "memory") 4))
  (core instance $memory (instantiate $memory))
  (type $bytes (stream u8))
  (core func $write-via-stream (canon lower (func $stdout "write-via-stream")))
  (core func $new (canon stream.new $bytes))
  (core func $write (canon stream.write $bytes async (memory (core memory $memory "memory"))))
  (core module $main
    (import "host" "memory" (memory 1))
    (import "host" "write-via-stream" (func $write-via-stream (param i32) (result i32)))
    (import "host" "new" (func $new (result i64)))
    (import "host" "write" (func $write (param i32 i32 i32) (result i32)))
    (global $stream (mut i32) (i32.const 0))
    (func (export "writes") (param $count i32) (param $size i32)
      (local $both i64)
      (if (i32.eqz (global.get $stream)) (then
        (local.set $both (call $new))
        (drop (call $write-via-stream (i32.wrap_i64 (local.get $both))))
        (global.set $stream (i32.wrap_i64 (i64.shr_u (local.get $both) (i64.const 32))))))
      (loop $again
        (if (i32.ne
              (call $write (global.get $stream) (i32.const 4096) (local.get $size))
              (i32.shl (local.get $size) (i32.const 4)))
          (then unreachable))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br_if $again (local.get $count)))))
  (core instance $main (instantiate $main (with "host" (instance
    (export "memory" (memory $memory "memory"))
    (export "write-via-stream" (func $write-via-stream))
    (export "new" (func $new))
    (export "write" (func $write))))))
  (func (export "writes") (param "count" u32) (param "size" u32)
    (canon lift (core func $main "writes"))))
