//! What the shim needs of wasmer and the C API lacks: `scripts/build-wasmer` adds this to the crate.

use crate::error::update_last_error;
use crate::wasm_c_api::engine::wasm_engine_t;
use crate::wasm_c_api::externals::{wasm_extern_t, wasm_func_t};
use crate::wasm_c_api::module::wasm_module_t;
use crate::wasm_c_api::store::wasm_store_t;
use crate::wasm_c_api::trap::wasm_trap_t;
use crate::wasm_c_api::types::wasm_functype_t;
use crate::wasm_c_api::unstable::features::wasmer_features_t;
use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::slice;
use wasmer_api::sys::{CompilerConfig, Cranelift, EngineBuilder, vm};
use wasmer_api::{Extern, Function, Module, RuntimeError, Type, Value};
use wasmer_types::RawValue;

const SLOTS: usize = 33;

/// Sets how much stack, in bytes, a guest has. It is 1 MiB otherwise.
#[unsafe(no_mangle)]
pub extern "C" fn pywasm_set_stack_size(bytes: usize) {
    vm::set_stack_size(bytes);
}

/// Makes an engine of cranelift whose artifacts are ELF images, which can be mapped.
#[unsafe(no_mangle)]
pub extern "C" fn pywasm_engine_new(features: Box<wasmer_features_t>) -> Box<wasm_engine_t> {
    let mut cranelift = Cranelift::new();
    cranelift.experimental_artifact(true);
    let compiler: Box<dyn CompilerConfig> = Box::new(cranelift);
    let builder = EngineBuilder::new(compiler).set_features(Some(features.inner));
    Box::new(wasm_engine_t { inner: builder.engine().into() })
}

/// Loads an artifact from a file, which is mapped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pywasm_module_deserialize_file(
    store: &wasm_store_t,
    path: *const c_char,
) -> Option<Box<wasm_module_t>> {
    let path = OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes());
    let store = unsafe { store.inner.store() };
    match unsafe { Module::deserialize_from_file(&store, path) } {
        Ok(inner) => Some(Box::new(wasm_module_t { inner })),
        Err(error) => {
            update_last_error(error);
            None
        }
    }
}

/// Makes a host function that is called with an array of `SLOTS` slots, and what was given here.
///
/// The array has the arguments, and gets the result where the first one was. A callback that leaves
/// something in the last slot has trapped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pywasm_func_new(
    store: &mut wasm_store_t,
    kind: &wasm_functype_t,
    callback: unsafe extern "C" fn(slots: *mut u64, environment: usize),
    environment: usize,
) -> Box<wasm_func_t> {
    let function_type = &kind.inner().function_type;
    assert!(function_type.params().len() < SLOTS);
    let result = function_type.results().first().copied();
    let mut store_mut = unsafe { store.inner.store_mut() };
    let function = Function::new(&mut store_mut, function_type, move |arguments| {
        let mut slots = [0; SLOTS];
        for (slot, value) in slots.iter_mut().zip(arguments) {
            *slot = to_slot(value);
        }
        unsafe { callback(slots.as_mut_ptr(), environment) };
        if slots[SLOTS - 1] != 0 {
            return Err(RuntimeError::new("a host function failed"));
        }
        Ok(result.map(|kind| from_slot(slots[0], kind)).into_iter().collect())
    });
    Box::new(wasm_func_t { extern_: wasm_extern_t::new(store.inner.clone(), function.into()) })
}

/// Calls a function with an array of `count` slots, arguments first and results then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pywasm_func_call(
    function: &mut wasm_func_t,
    slots: *mut u64,
    count: usize,
) -> Option<Box<wasm_trap_t>> {
    let slots = unsafe { slice::from_raw_parts_mut(slots, count) };
    let values = slots.iter().map(|&u64| RawValue { u64 }).collect();
    let mut store_mut = unsafe { function.extern_.store.store_mut() };
    let Extern::Function(callee) = &function.extern_.inner else { unreachable!() };
    match callee.call_raw(&mut store_mut, values) {
        Ok(results) => {
            for (slot, value) in slots.iter_mut().zip(&results) {
                *slot = to_slot(value);
            }
            None
        }
        Err(error) => Some(Box::new(error.into())),
    }
}

fn to_slot(value: &Value) -> u64 {
    match value {
        Value::I32(number) => *number as u32 as u64,
        Value::I64(number) => *number as u64,
        Value::F32(number) => u64::from(number.to_bits()),
        Value::F64(number) => number.to_bits(),
        _ => 0, // of a type that nobody here looks at
    }
}

fn from_slot(slot: u64, kind: Type) -> Value {
    match kind {
        Type::I32 => Value::I32(slot as i32),
        Type::I64 => Value::I64(slot as i64),
        Type::F32 => Value::F32(f32::from_bits(slot as u32)),
        Type::F64 => Value::F64(f64::from_bits(slot)),
        _ => unreachable!("no host function is of such a type"),
    }
}
