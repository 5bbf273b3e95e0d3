//! What text a field takes, where more than one kind or test has to agree on it. The syntax is RE2, which has no look-ahead.

/// A host name or IPv4 address: labels without an empty one, in lower case.
pub const HOST: &str = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$";

/// The same, or `*.` and a host name for any name below it, or `*` for any host.
pub const HOSTS: &str = r"^(\*|(\*\.)?[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*)$";
/// A path that every server reads the same way: no empty segment, no `.` and no `..`.
pub const PATH: &str = r"^(/|(/(\.?[A-Za-z0-9_~-]|\.\.[A-Za-z0-9._~-])[A-Za-z0-9._~-]*)+/?)$";

/// The same for a folder, which is not the root.
pub const FOLDER: &str = r"^(/(\.?[A-Za-z0-9_~-]|\.\.[A-Za-z0-9._~-])[A-Za-z0-9._~-]*)+/?$";

/// A URL with a host, maybe a port and maybe a plain path.
pub const BASE_URL: &str = concat!(
    r"^https?://[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*",
    r"(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?",
    r"(/|(/(\.?[A-Za-z0-9_~-]|\.\.[A-Za-z0-9._~-])[A-Za-z0-9._~-]*)+/?)?$",
);

/// An amount of money, as a decimal number.
pub const DECIMAL: &str = r"^[0-9]+(\.[0-9]+)?$";

/// A key of a Secret, as the API server takes it: not `.`, and nothing that begins with `..`.
pub const SECRET_KEY: &str = r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$";

/// A service or a region in the scope of an AWS signature.
pub const AWS_SCOPE: &str = "^[a-z0-9-]+$";

/// Folders of a sandbox that its workspace would hide, or have in it.
pub const NO_RESERVED_FOLDER: &str = "!self.mountPath.matches('^/(tmp|proc|sys|dev|etc|run/longhand)(/|$)|^/run/*$')";

/// Headers that frame or route a message, or belong to one connection: the proxy places no credential there.
pub const NO_RESERVED_HEADER: &str = concat!(
    "!has(self.header) || !self.header.matches('(?i)^(host|content-length|transfer-encoding|trailer|te|expect|connection|",
    "keep-alive|upgrade|http2-settings|proxy-.*|forwarded|x-forwarded-.*|x-host|x-real-ip|x-original-(host|url)|",
    "x-rewrite-url|x-http-method(-override)?|x-method-override)$')",
);
