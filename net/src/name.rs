//! Domain names, as they stand in rules, in DNS messages and in what clients say of their server.

/// The longest name, in bytes, without a dot at its end (RFC 1035, section 2.3.4).
pub(crate) const MAX_NAME: usize = 253;
/// The longest label.
pub(crate) const MAX_LABEL: usize = 63;

/// Why a text is no name.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum NameError {
    #[error("an empty name")]
    Empty,
    #[error("an empty label")]
    EmptyLabel,
    #[error("a name of more than {MAX_NAME} bytes")]
    Long,
    #[error("a label of more than {MAX_LABEL} bytes")]
    LongLabel,
    #[error("a label that begins or ends with a hyphen")]
    Hyphen,
    #[error("{0:?} is no character of a domain name")]
    Character(char),
    #[error("not ASCII: write the form that begins with xn--")]
    NotAscii,
}

/// `text` in lower case and without a dot at its end, if it is a name.
pub(crate) fn parse(text: &str) -> Result<String, NameError> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if !text.is_ascii() {
        return Err(NameError::NotAscii);
    }
    for label in text.split('.') {
        if label.is_empty() {
            return Err(NameError::EmptyLabel);
        }
        if let Some(byte) = label.bytes().find(|byte| !is_character(*byte)) {
            return Err(NameError::Character(byte.into()));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(NameError::Hyphen);
        }
        if label.len() > MAX_LABEL {
            return Err(NameError::LongLabel);
        }
    }
    if text.len() > MAX_NAME {
        return Err(NameError::Long);
    }
    Ok(text.to_ascii_lowercase())
}

/// Whether `byte` may stand in a label. Underscores are in names of services, and in some of hosts.
pub(crate) fn is_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}
