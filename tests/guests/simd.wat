;; What cranelift 0.76 makes of SIMD (shim/engines/flaws.py): ends with 239 where all is right.
;; 15 is a swizzle's mask, which it must not overwrite, 224 its result, and `select` must leave
;; its second operand alone.
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\00\01\02\03\04\05\06\07\08\09\0a\0b\0c\0d\0e\0f")
  (data (i32.const 16) "\0f\0e\0d\0c\0b\0a\09\08\07\06\05\04\03\02\01\80")
  (func $swizzle (param $mask v128) (param $values v128) (result i32)
    (v128.store (i32.const 64) (i8x16.swizzle (local.get $values) (local.get $mask)))
    (v128.store (i32.const 80) (local.get $mask))
    (i32.add
      (i32.load8_u (i32.const 80))
      (i32.mul (i32.const 16) (i32.load8_u (i32.const 65)))))
  (func $select (param $which i32) (param $one v128) (param $other v128) (result i32)
    (v128.store (i32.const 96)
      (select (result v128) (local.get $one) (local.get $other) (local.get $which)))
    (v128.store (i32.const 112) (local.get $other))
    (i32.load8_u (i32.const 112)))
  (func (export "_start")
    (call $exit
      (i32.add
        (call $swizzle (v128.load (i32.const 16)) (v128.load (i32.const 0)))
        (call $select (i32.const 1) (v128.load (i32.const 16)) (v128.load (i32.const 0)))))))
