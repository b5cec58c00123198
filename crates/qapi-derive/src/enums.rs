//! Enums: plain enumerations, flat unions and alternates.

use crate::attrs::Attrs;
use crate::object::describe_impl;
use proc_macro2::TokenStream;
use quote::quote;
use syn::{DataEnum, DeriveInput, Fields, Ident, Type, Variant};

struct Case<'a> {
    ident: &'a Ident,
    name: String,
    payload: Option<&'a Type>,
    attrs: Attrs,
}

fn cases<'a>(data: &'a DataEnum, outer: &Attrs) -> syn::Result<Vec<Case<'a>>> {
    data.variants.iter().map(|variant| case(variant, outer)).collect()
}

fn case<'a>(variant: &'a Variant, outer: &Attrs) -> syn::Result<Case<'a>> {
    let attrs = Attrs::of(&variant.attrs, "qapi")?;
    let payload = match &variant.fields {
        Fields::Unit => None,
        Fields::Unnamed(fields) if fields.unnamed.len() == 1 => Some(&fields.unnamed[0].ty),
        _ => return Err(syn::Error::new_spanned(variant, "at most one unnamed payload")),
    };
    Ok(Case { ident: &variant.ident, name: attrs.wire_name(&variant.ident, outer), payload, attrs })
}

pub fn plain(input: &DeriveInput, data: &DataEnum, attrs: &Attrs) -> syn::Result<TokenStream> {
    let cases = cases(data, attrs)?;
    if let Some(case) = cases.iter().find(|case| case.payload.is_some()) {
        return Err(syn::Error::new_spanned(case.ident, "payloads need #[qapi(tag)] or #[qapi(alternate)]"));
    }
    let ident = &input.ident;
    let type_name = attrs.name.clone().unwrap_or_else(|| ident.to_string());
    let doc = &attrs.doc;
    let idents: Vec<_> = cases.iter().map(|case| case.ident).collect();
    let names: Vec<_> = cases.iter().map(|case| &case.name).collect();
    let docs = cases.iter().map(|case| &case.attrs.doc);
    let features = cases.iter().map(|case| {
        let features = &case.attrs.features;
        quote!(&[#(#features),*])
    });
    Ok(quote! {
        #[automatically_derived]
        impl #ident {
            /// Every value, in declared order.
            pub const ALL: &'static [Self] = &[#(Self::#idents),*];

            /// The name on the wire.
            pub fn as_str(&self) -> &'static str {
                match self { #(Self::#idents => #names),* }
            }

            /// The value of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { #(#names => Some(Self::#idents),)* _ => None }
            }
        }

        #[automatically_derived]
        impl ::core::fmt::Display for #ident {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        #[automatically_derived]
        impl ::qapi::Describe for #ident {
            const KIND: ::qapi::Kind = ::qapi::Kind::String;
            fn describe(book: &mut ::qapi::Book) -> ::qapi::book::TypeId {
                book.enumeration::<Self>(#type_name, #doc, &[#((#names, #docs, #features)),*])
            }
            fn read(value: ::qapi::Value, at: &::qapi::At) -> ::qapi::Result<Self> {
                let name = ::qapi::read_name(value, at)?;
                Self::from_name(&name).ok_or_else(|| ::qapi::bad_name(&name))
            }
            fn write(&self) -> ::qapi::Value {
                ::qapi::Value::from(self.as_str())
            }
        }
    })
}

pub fn union(input: &DeriveInput, data: &DataEnum, attrs: &Attrs) -> syn::Result<TokenStream> {
    let cases = cases(data, attrs)?;
    let ident = &input.ident;
    let tag = attrs.tag.as_ref().expect("checked by the caller");
    let tag_name = attrs.tag_name.clone().unwrap_or_else(|| format!("{ident}Kind"));
    let names: Vec<_> = cases.iter().map(|case| &case.name).collect();
    let (mut take, mut put, mut shapes) = (Vec::new(), Vec::new(), Vec::new());
    for case in &cases {
        let (name, variant) = (&case.name, case.ident);
        let features = &case.attrs.features;
        let doc = &case.attrs.doc;
        shapes.push(match (case.payload, &attrs.data) {
            (Some(ty), None) => quote!((#name, <#ty as ::qapi::Describe>::describe(book))),
            (Some(ty), Some(data)) => quote!((#name, {
                let inner = <#ty as ::qapi::Describe>::describe(book);
                book.wrapper(#data, inner)
            })),
            (None, None) => quote!((#name, book.empty())),
            (None, Some(data)) => quote!((#name, {
                let inner = book.empty();
                book.wrapper(#data, inner)
            })),
        });
        let _ = (features, doc);
        take.push(match (case.payload, &attrs.data) {
            (Some(ty), None) => quote!(#name => Self::#variant(<#ty as ::qapi::Object>::take(fields)?),),
            (Some(ty), Some(data)) => quote!(#name => Self::#variant(fields.take::<#ty>(#data, &[])?),),
            (None, None) => quote!(#name => Self::#variant,),
            (None, Some(data)) => quote!(#name => {
                fields.take::<()>(#data, &[])?;
                Self::#variant
            }),
        });
        put.push(match (case.payload, &attrs.data) {
            (Some(_), None) => quote! { Self::#variant(inner) => {
                into.insert(#tag.into(), #name.into());
                ::qapi::Object::put(inner, into);
            } },
            (Some(_), Some(data)) => quote! { Self::#variant(inner) => {
                into.insert(#tag.into(), #name.into());
                into.insert(#data.into(), ::qapi::Describe::write(inner));
            } },
            (None, None) => quote! { Self::#variant => { into.insert(#tag.into(), #name.into()); } },
            (None, Some(data)) => quote! { Self::#variant => {
                into.insert(#tag.into(), #name.into());
                into.insert(#data.into(), ::qapi::Describe::write(&()));
            } },
        });
    }
    let docs = cases.iter().map(|case| &case.attrs.doc);
    let features = cases.iter().map(|case| {
        let features = &case.attrs.features;
        quote!(&[#(#features),*])
    });
    let describe = describe_impl(input, attrs);
    Ok(quote! {
        #[automatically_derived]
        impl #ident {
            /// The value of the tag.
            pub const TAGS: &'static [&'static str] = &[#(#names),*];
        }

        #[automatically_derived]
        impl ::qapi::Object for #ident {
            fn require(fields: &::qapi::Fields) -> ::qapi::Result<()> {
                fields.require::<String>(#tag, &[])
            }
            fn take(fields: &mut ::qapi::Fields) -> ::qapi::Result<Self> {
                let tag = fields.take::<String>(#tag, &[])?;
                Ok(match tag.as_str() {
                    #(#take)*
                    _ => return Err(::qapi::bad_name(&tag)),
                })
            }
            fn put(&self, into: &mut ::qapi::Map) {
                match self { #(#put)* }
            }
            fn shape(book: &mut ::qapi::Book, shape: &mut ::qapi::book::Shape) {
                let kinds = book.tags::<Self>(#tag_name, &[#((#names, #docs, #features)),*]);
                shape.member(#tag, kinds, false, "", &[]);
                let variants = [#(#shapes),*];
                shape.union(#tag, &variants);
            }
        }
        #describe
    })
}

pub fn alternate(input: &DeriveInput, data: &DataEnum, attrs: &Attrs) -> syn::Result<TokenStream> {
    let cases = cases(data, attrs)?;
    let ident = &input.ident;
    let name = attrs.name.clone().unwrap_or_else(|| ident.to_string());
    let doc = &attrs.doc;
    let (mut kinds, mut reads, mut writes) = (Vec::new(), Vec::new(), Vec::new());
    for case in &cases {
        let variant = case.ident;
        match case.payload {
            Some(ty) => {
                kinds.push(quote!(<#ty as ::qapi::Describe>::describe(book)));
                reads.push(quote! {
                    if <#ty as ::qapi::Describe>::KIND.accepts(&value) {
                        return Ok(Self::#variant(<#ty as ::qapi::Describe>::read(value, at)?));
                    }
                });
                writes.push(quote!(Self::#variant(inner) => ::qapi::Describe::write(inner),));
            }
            None => {
                kinds.push(quote!(book.null()));
                reads.push(quote!(if value.is_null() { return Ok(Self::#variant); }));
                writes.push(quote!(Self::#variant => ::qapi::Value::Null,));
            }
        }
    }
    Ok(quote! {
        #[automatically_derived]
        impl ::qapi::Describe for #ident {
            const KIND: ::qapi::Kind = ::qapi::Kind::Alternate;
            fn describe(book: &mut ::qapi::Book) -> ::qapi::book::TypeId {
                book.alternate::<Self>(#name, #doc, |book| vec![#(#kinds),*])
            }
            fn read(value: ::qapi::Value, at: &::qapi::At) -> ::qapi::Result<Self> {
                #(#reads)*
                Err(at.wrong_alternate(#name))
            }
            fn write(&self) -> ::qapi::Value {
                match self { #(#writes)* }
            }
        }
    })
}
