;; Calls another component COUNT times with a string of a KiB.
(component
  (component $length
    (core module $main
      (memory (export "memory") 4)
      (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
      (func (export "length") (param i32 i32) (result i32) (local.get 1)))
    (core instance $main (instantiate $main))
    (func (export "length") (param "text" string) (result u32)
      (canon lift (core func $main "length")
        (memory (core memory $main "memory")) (realloc (core func $main "realloc")))))
  (component $caller
    (import "length" (func $length (param "text" string) (result u32)))
    (core module $memory (memory (export "memory") 4))
    (core instance $memory (instantiate $memory))
    (core func $length (canon lower (func $length) (memory (core memory $memory "memory"))))
    (core module $main
      (import "host" "memory" (memory 1))
      (import "host" "length" (func $length (param i32 i32) (result i32)))
      (func (export "calls") (param $count i32)
        (memory.fill (i32.const 4096) (i32.const 0x61) (i32.const 1024))
        (loop $again
          (if (i32.ne (call $length (i32.const 4096) (i32.const 1024)) (i32.const 1024))
            (then unreachable))
          (local.set $count (i32.sub (local.get $count) (i32.const 1)))
          (br_if $again (local.get $count)))))
    (core instance $main (instantiate $main (with "host" (instance
      (export "memory" (memory $memory "memory"))
      (export "length" (func $length))))))
    (func (export "calls") (param "count" u32) (canon lift (core func $main "calls"))))
  (instance $length (instantiate $length))
  (instance $caller (instantiate $caller (with "length" (func $length "length"))))
  (func (export "calls") (alias export $caller "calls")))
