//! Derives the wire form and the introspection of a Rust type; see crate `qapi` for what the
//! derived traits mean and for the attributes.

#![forbid(unsafe_code)]

mod attrs;
mod command;
mod enums;
mod object;

use proc_macro::TokenStream;
use syn::{Data, DeriveInput, parse_macro_input};

/// Derives `qapi::Describe` (and `qapi::Object` for structs and flat unions).
#[proc_macro_derive(Describe, attributes(qapi))]
pub fn describe(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input).unwrap_or_else(|error| error.to_compile_error()).into()
}

/// Derives `qapi::Command` (and everything `Describe` gives) for a struct of arguments.
#[proc_macro_derive(Command, attributes(qapi, command))]
pub fn command(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    command::command(&input).unwrap_or_else(|error| error.to_compile_error()).into()
}

/// Derives `qapi::Event` (and everything `Describe` gives) for a struct of event data.
#[proc_macro_derive(Event, attributes(qapi, event))]
pub fn event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    command::event(&input).unwrap_or_else(|error| error.to_compile_error()).into()
}

fn expand(input: &DeriveInput) -> syn::Result<proc_macro2::TokenStream> {
    let attrs = attrs::Attrs::of(&input.attrs, "qapi")?;
    match &input.data {
        Data::Struct(data) => object::structure(input, data, &attrs),
        Data::Enum(data) if attrs.tag.is_some() => enums::union(input, data, &attrs),
        Data::Enum(data) if attrs.alternate => enums::alternate(input, data, &attrs),
        Data::Enum(data) => enums::plain(input, data, &attrs),
        Data::Union(_) => Err(syn::Error::new_spanned(input, "a union has no wire form")),
    }
}
