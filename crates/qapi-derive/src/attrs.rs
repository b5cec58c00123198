//! What stands in `#[qapi(...)]`, `#[command(...)]` and `#[event(...)]`.

use syn::meta::ParseNestedMeta;
use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, ExprLit, Ident, Lit, LitStr, Meta, Token, Type};

#[derive(Default)]
pub struct Attrs {
    pub name: Option<String>,
    pub rename_all: Option<String>,
    pub tag: Option<String>,
    pub tag_name: Option<String>,
    pub data: Option<String>,
    pub alternate: bool,
    pub aliases: Vec<String>,
    pub default: Option<Option<Expr>>,
    pub flatten: bool,
    pub rest: bool,
    pub features: Vec<String>,
    pub reply: Option<Type>,
    pub oob: bool,
    pub preconfig: bool,
    pub throttle: Option<Vec<String>>,
    pub doc: String,
}

impl Attrs {
    /// Reads the doc comment and every attribute called `of`.
    pub fn of(list: &[Attribute], of: &str) -> syn::Result<Attrs> {
        let mut attrs = Attrs { doc: doc_text(list), ..Attrs::default() };
        for attribute in list.iter().filter(|attribute| attribute.path().is_ident(of)) {
            attribute.parse_nested_meta(|meta| attrs.item(&meta))?;
        }
        Ok(attrs)
    }

    fn item(&mut self, meta: &ParseNestedMeta) -> syn::Result<()> {
        let key = meta.path.require_ident()?.to_string();
        match key.as_str() {
            "name" => self.name = Some(text(meta)?),
            "rename_all" => self.rename_all = Some(text(meta)?),
            "tag" => self.tag = Some(text(meta)?),
            "tag_name" => self.tag_name = Some(text(meta)?),
            "data" => self.data = Some(text(meta)?),
            "alternate" => self.alternate = true,
            "alias" => self.aliases.push(text(meta)?),
            "flatten" => self.flatten = true,
            "rest" => self.rest = true,
            "oob" => self.oob = true,
            "preconfig" => self.preconfig = true,
            "reply" => self.reply = Some(meta.value()?.parse()?),
            "features" => self.features = texts(meta)?,
            "throttle" if meta.input.peek(syn::token::Paren) => self.throttle = Some(texts(meta)?),
            "throttle" => self.throttle = Some(Vec::new()),
            "default" if meta.input.peek(Token![=]) => self.default = Some(Some(meta.value()?.parse()?)),
            "default" => self.default = Some(None),
            _ => return Err(meta.error(format!("unknown attribute '{key}'"))),
        }
        Ok(())
    }

    /// The wire name of a member or an enum value.
    pub fn wire_name(&self, ident: &Ident, outer: &Attrs) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        let words = words(&ident.to_string());
        match outer.rename_all.as_deref() {
            Some("snake") => words.join("_"),
            _ => words.join("-"),
        }
    }
}

/// Splits `CamelCase` and `snake_case` into lower-case words.
pub fn words(ident: &str) -> Vec<String> {
    let ident = ident.strip_prefix("r#").unwrap_or(ident);
    let mut words = vec![String::new()];
    for c in ident.chars() {
        let fresh = words.last().is_some_and(String::is_empty);
        if c == '_' || (c.is_uppercase() && !fresh) {
            words.push(String::new());
        }
        if c != '_' {
            let word = words.last_mut().expect("there is a word");
            word.extend(c.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn text(meta: &ParseNestedMeta) -> syn::Result<String> {
    Ok(meta.value()?.parse::<LitStr>()?.value())
}

fn texts(meta: &ParseNestedMeta) -> syn::Result<Vec<String>> {
    let inner;
    syn::parenthesized!(inner in meta.input);
    let list = Punctuated::<LitStr, Token![,]>::parse_terminated(&inner)?;
    Ok(list.iter().map(LitStr::value).collect())
}

fn doc_text(list: &[Attribute]) -> String {
    let mut lines = Vec::new();
    for attribute in list {
        if let Meta::NameValue(pair) = &attribute.meta
            && pair.path.is_ident("doc")
            && let Expr::Lit(ExprLit { lit: Lit::Str(line), .. }) = &pair.value
        {
            lines.push(line.value().trim().to_string());
        }
    }
    lines.join("\n").trim().to_string()
}
