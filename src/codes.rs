//! Every code that an answer of the mesh, a metric or a line of the log can carry: what it means, and what to look at.
//!
//! Programs go by them, so their names stay. `docs/errors.md` is made from this.

/// Declares [`Code`], and the list of them by the place where they are met.
macro_rules! codes {
    ($($place:literal { $($Code:ident $name:literal $status:expr, $means:literal, $look:literal;)+ })+) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $($(#[doc = $means] $Code,)+)+
        }

        /// All of them, by where they are met.
        pub const ALL: &[(&str, &[Code])] = &[$(($place, &[$(Code::$Code),+])),+];

        impl Code {
            /// As it stands in answers, metrics and logs.
            pub const fn name(self) -> &'static str {
                match self { $($(Self::$Code => $name,)+)+ }
            }

            /// The HTTP status that comes with it; `None` where it is no answer.
            pub const fn status(self) -> Option<u16> {
                match self { $($(Self::$Code => $status,)+)+ }
            }

            /// What has happened.
            pub const fn means(self) -> &'static str {
                match self { $($(Self::$Code => $means,)+)+ }
            }

            /// What to look at, or to do.
            pub const fn look(self) -> &'static str {
                match self { $($(Self::$Code => $look,)+)+ }
            }
        }
    };
}

codes! {
    "From the proxy of the calling machine" {
        BadTarget "bad_target" Some(400),
            "a target header is malformed or repeated",
            "the caller: 40 hex digits, a port from 1 to 65535";
        BadRequest "bad_request" Some(400),
            "not a request that can be passed on",
            "the caller; `error` says what is wrong with it";
        TooManyHeaders "too_many_headers" Some(431),
            "more headers than are allowed",
            "the caller, or `limits.headers`";
        ConnectNotServed "connect_not_served" Some(405),
            "the method CONNECT",
            "name the target in `x-dstack-target-app`; for TCP, use a `[[forwards]]`";
        ClientGone "client_gone" Some(400),
            "the request broke off before its end; in metrics and logs also: nobody waited for the answer",
            "the caller, and its timeouts";
        GatewayUnknown "gateway_unknown" Some(502),
            "nobody told where other apps can be reached",
            "`dstack-vpc explain dstack.gateway_domain`: set it, or mend `.sys-config.json` (a gateway URL without its port is the usual mistake)";
        NoIdentity "no_identity" Some(502),
            "this machine has no certificate yet",
            "`dstack-vpc status` says what the guest agent answers";
        Dns "dns" Some(502),
            "the gateway's name cannot be looked up",
            "`dstack.gateway_domain`, and the DNS of this machine";
        ConnectRefused "connect_refused" Some(502),
            "nobody listens at the gateway's address",
            "`dstack.gateway_domain`, and whether the gateway runs";
        Unreachable "unreachable" Some(502),
            "the gateway's address cannot be reached",
            "the network, `dstack.gateway_domain`";
        ConnectTimeout "connect_timeout" Some(504),
            "TCP and TLS took too long",
            "does that app run, and listen on that port? Else `mesh.connect_timeout`";
        TlsFailed "tls_failed" Some(502),
            "the handshake broke off",
            "does an instance of that app run, and dstack-vpc in it? A gateway hangs up when none does";
        PeerClosed "peer_closed" Some(502),
            "the connection ended before a whole answer",
            "the logs of the other machine; the request may have been carried out";
        BadResponse "bad_response" Some(502),
            "what came was not HTTP",
            "what listens on that port of the other machine";
        ResponseTimeout "response_timeout" Some(504),
            "the answer took too long",
            "the backend of the other machine, or `mesh.response_timeout`";
        AgentUnavailable "agent_unavailable" Some(502),
            "the guest agent does not answer",
            "is its socket mounted into the container? `dstack-vpc doctor`";
        TooManyConnections "too_many_connections" Some(503),
            "the listener has as many connections as it may have",
            "who opens so many; `limits.connections`";
        Internal "internal" Some(500),
            "a fault of ours",
            "the daemon's log, and a report to us";
    }
    "About the certificate of the other machine: the called one's in answers, a caller's in metrics and logs" {
        UntrustedChain "untrusted_chain" Some(502),
            "it does not lead to the root of our KMS",
            "are both apps on the same KMS?";
        BadCertificate "bad_certificate" Some(502),
            "it cannot be read as one of the platform's",
            "who listens there, or what calls: it is no dstack app";
        Expired "expired" Some(502),
            "its time is over",
            "`dstack-vpc status` on that machine; the clocks of both";
        NotYetValid "not_yet_valid" Some(502),
            "its time has not begun",
            "the clocks of both machines";
        WrongUsage "wrong_usage" Some(502),
            "it was made for something else than an app's TLS",
            "who listens there, or what calls";
        NoAppId "no_app_id" Some(502),
            "it was made without a KMS, so it names no app",
            "that app's platform configuration: its compose has to ask for a KMS";
        IdentityMismatch "identity_mismatch" Some(502),
            "it is that of another app",
            "the app id in the header, the gateway's routing";
    }
    "From the front of the machine that is called" {
        Unauthorized "unauthorized" Some(401),
            "the caller's certificate proves no app",
            "that machine's log with `log.level = \"debug\"` names one of the causes above; the built-in front says it in `error`";
        Forbidden "forbidden" Some(403),
            "the caller's app may not call this backend",
            "the backend's `allowed_apps`";
        NoBackend "no_backend" Some(421),
            "no backend has this Host, and none is for every other",
            "the request's Host; `server_name` of the backends, \"_\" for every other Host";
        NotServed "not_served" Some(503),
            "the machine has no certificate that it can use; on TCP also: the backend or forward has just been taken out",
            "`dstack-vpc status` there";
        AuthUnavailable "auth_unavailable" Some(500),
            "the daemon there does not answer nginx",
            "`dstack-vpc status` there, and the daemon's log";
        BackendUnreachable "backend_unreachable" Some(502),
            "the backend does not answer, or not with HTTP",
            "whether it runs; its `upstream`";
        BackendTimeout "backend_timeout" Some(504),
            "the backend took too long",
            "the backend";
        Refused "refused" None,
            "another refusal of nginx, such as a request that it cannot read",
            "the status; nginx's log";
    }
    "From the local nginx" {
        ProxyUnavailable "proxy_unavailable" Some(502),
            "the daemon of this machine does not answer; 504 where it is too slow",
            "`dstack-vpc status`";
    }
    "In metrics and logs alone" {
        NoCertificate "no_certificate" Some(401),
            "the caller showed no certificate",
            "what calls: it has to use the certificate that its guest agent issues";
        NotAllowed "not_allowed" Some(403),
            "the caller's app is not in the backend's `allowed_apps`",
            "`allowed_apps`, if it should be";
        UnknownBackend "unknown_backend" Some(403),
            "the caller asked for a Host that no backend has",
            "the caller's Host";
        NotFound "not_found" Some(404),
            "somebody called `auth_listen` who is not nginx",
            "keep it on loopback";
        Ended "ended" None,
            "a TCP session: both sides had said all they had to say",
            "all is well";
        BrokeOff "broke_off" None,
            "a TCP session: one side was gone before that",
            "the log of the program on that side";
        Idle "idle" None,
            "a TCP session: nothing moved for too long",
            "keep-alives of the program, or `limits.tcp_idle_timeout`";
        Cut "cut" None,
            "a TCP session: the daemon ended",
            "all is well";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_there_once() {
        let mut names = std::collections::BTreeSet::new();
        for code in ALL.iter().flat_map(|(_, codes)| *codes) {
            assert!(names.insert(code.name()), "{code:?}");
        }
    }

    /// What nginx answers by itself stands in the text of its configuration.
    #[test]
    fn the_codes_of_nginx_are_these() {
        let template = include_str!("../templates/nginx.conf.tera");
        let pattern = r#"(?:(\d{3})|default|return 200) '\{"error":[^']*"code":"(\w+)""#;
        let mut found = 0;
        for said in regex::Regex::new(pattern).unwrap().captures_iter(template) {
            found += 1;
            let code = ALL.iter().flat_map(|(_, codes)| *codes);
            let code = { code }.find(|code| code.name() == &said[2]).expect(&said[2]);
            if let Some(status) = said.get(1) {
                assert_eq!(status.as_str().parse().ok(), code.status(), "{code:?}");
            }
        }
        assert_eq!(found, template.matches("\"code\":").count());
    }
}
