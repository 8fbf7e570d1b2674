{{/* What the chart reads out of popproxy's configuration. Lists and dictionaries are returned as JSON. */}}

{{/* A duration such as 30s or 1.5m in whole seconds, rounded up. */}}
{{- define "popproxy.seconds" -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $number := float64 (regexFind "^[0-9.]+" .) -}}
{{- mulf $number (get (dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0) $unit) | ceil | int64 -}}
{{- end -}}

{{/* Seconds that sessions may go on after SIGTERM. */}}
{{- define "popproxy.drain" -}}
{{- include "popproxy.seconds" ((.Values.config.timeouts | default dict).drain | default "30s") -}}
{{- end -}}

{{- define "popproxy.gracePeriod" -}}
{{- $needed := add .Values.preStopSeconds (include "popproxy.drain" .) 15 -}}
{{- kindIs "invalid" .Values.terminationGracePeriodSeconds | ternary $needed .Values.terminationGracePeriodSeconds | int64 -}}
{{- end -}}

{{/* The address of an http.listen or listen entry, without port; empty for all addresses. */}}
{{- define "popproxy.host" -}}
{{- regexReplaceAll ":[0-9]+$" . "" -}}
{{- end -}}

{{- define "popproxy.port" -}}
{{- regexFind "[0-9]+$" . -}}
{{- end -}}

{{- define "popproxy.httpListen" -}}
{{- (.Values.config.http | default dict).listen | default "127.0.0.1:9110" -}}
{{- end -}}

{{/* [{name, protocol, tls, port, outside, portName}]: the listeners as the Service and the pod show them. */}}
{{- define "popproxy.listeners" -}}
{{- $found := list -}}
{{- range $index, $listener := .Values.config.listeners -}}
{{- $tls := default "stls" $listener.tls -}}
{{- $usual := eq (default "pop3" $listener.protocol) "kpop" | ternary 1109 (eq $tls "implicit" | ternary 995 110) -}}
{{- $plain := regexMatch "^[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$" $listener.name -}}
{{- $plain = and $plain (regexMatch "[a-z]" $listener.name) (not (contains "--" $listener.name)) (ne $listener.name "http") -}}
{{- $found = append $found (dict
    "name" $listener.name
    "protocol" (default "pop3" $listener.protocol)
    "tls" $tls
    "proxied" (gt (len (default list $listener.proxy_protocol)) 0)
    "port" (include "popproxy.port" (first $listener.listen) | int)
    "outside" (get $.Values.service.ports $listener.name | default $usual | int)
    "portName" ($plain | ternary $listener.name (printf "listener-%d" $index))
  ) -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* The port of host, host:port or [address]:port. A dictionary: server, usual. */}}
{{- define "popproxy.serverPort" -}}
{{- if regexMatch "^(\\[[^\\]]*\\]|[^:]*):[0-9]+$" .server -}}
{{- include "popproxy.port" .server -}}
{{- else -}}
{{- .usual -}}
{{- end -}}
{{- end -}}

{{/* The port of a URL. */}}
{{- define "popproxy.urlPort" -}}
{{- $usual := dict "https" 443 "http" 80 "ldaps" 636 "ldap" 389 -}}
{{- $url := urlParse . -}}
{{- include "popproxy.serverPort" (dict "server" $url.host "usual" (get $usual $url.scheme | default 5432)) -}}
{{- end -}}

{{/* Ports of the POP3 servers, of the SSH servers in front of them, and of SOCKS proxies. */}}
{{- define "popproxy.backendPorts" -}}
{{- $ports := list -}}
{{- range $pool := .Values.config.pools -}}
{{- $usual := eq (default "stls" .tls) "implicit" | ternary 995 110 -}}
{{- $direct := list -}}
{{- range .servers -}}
{{- $tunnel := hasKey ($pool.server_tunnels | default dict) . | ternary (get ($pool.server_tunnels | default dict) .) $pool.tunnel -}}
{{- if not $tunnel -}}
{{- $direct = append $direct (include "popproxy.serverPort" (dict "server" . "usual" $usual) | int) -}}
{{- end -}}
{{- end -}}
{{- if and .srv (not .tunnel) -}}{{- $direct = append $direct $usual -}}{{- end -}}
{{- if and .socks $direct -}}
{{- $direct = list (include "popproxy.serverPort" (dict "server" .socks.server "usual" 1080) | int) -}}
{{- end -}}
{{- $ports = concat $ports $direct -}}
{{- end -}}
{{- range .Values.config.tunnels -}}
{{- if not .via -}}{{- $ports = append $ports (default 22 .port | int) -}}{{- end -}}
{{- end -}}
{{- $ports | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* Ports of name servers. */}}
{{- define "popproxy.dnsPorts" -}}
{{- $ports := list 53 -}}
{{- range (.Values.config.names | default dict).servers -}}
{{- $ports = append $ports (include "popproxy.serverPort" (dict "server" . "usual" 53) | int) -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}

{{/* Ports of directories, issuers and token endpoints. */}}
{{- define "popproxy.directoryPorts" -}}
{{- $ports := list -}}
{{- range .Values.config.directories -}}
{{- with .ldap -}}
{{- $usual := eq (default "starttls" .tls) "implicit" | ternary 636 389 -}}
{{- range .servers -}}
{{- $ports = append $ports (include "popproxy.serverPort" (dict "server" . "usual" $usual) | int) -}}
{{- end -}}
{{- end -}}
{{- with .sql -}}
{{- if hasPrefix "postgresql" .url -}}{{- $ports = append $ports (include "popproxy.urlPort" .url | int) -}}{{- end -}}
{{- end -}}
{{- with .http -}}
{{- if not (hasPrefix "http://unix:" .url) -}}{{- $ports = append $ports (include "popproxy.urlPort" .url | int) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- range .Values.config.pools -}}
{{- with .xoauth2 -}}{{- $ports = append $ports (include "popproxy.urlPort" .endpoint | int) -}}{{- end -}}
{{- end -}}
{{- range (.Values.config.oauth | default dict).issuers -}}
{{- $ports = append $ports (include "popproxy.urlPort" .issuer | int) -}}
{{- with .jwks -}}{{- $ports = append $ports (include "popproxy.urlPort" . | int) -}}{{- end -}}
{{- with .introspection -}}{{- $ports = append $ports (include "popproxy.urlPort" .url | int) -}}{{- end -}}
{{- end -}}
{{- $ports | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* "yes" if a KDC is asked for something: not needed for tickets that clients bring. */}}
{{- define "popproxy.usesKerberos" -}}
{{- $uses := not (empty .Values.config.kerberos) -}}
{{- range .Values.config.tunnels -}}{{- if .gssapi -}}{{- $uses = true -}}{{- end -}}{{- end -}}
{{- if $uses -}}yes{{- end -}}
{{- end -}}

{{/* Ports of Redis: of its nodes, or of its sentinels and the primary that they name. */}}
{{- define "popproxy.redisPorts" -}}
{{- $ports := list -}}
{{- with (.Values.config.shared_state | default dict).url -}}
{{- if not (hasPrefix "unix:" .) -}}
{{- $sentinel := contains "+sentinel:" . -}}
{{- if $sentinel -}}{{- $ports = append $ports 6379 -}}{{- end -}}
{{- range regexFind "//[^/]*" . | trimPrefix "//" | splitList "," -}}
{{- $ports = append $ports (include "popproxy.serverPort" (dict "server" . "usual" ($sentinel | ternary 26379 6379)) | int) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}

{{/* How many pods there can be. */}}
{{- define "popproxy.most" -}}
{{- .Values.autoscaling.enabled | ternary .Values.autoscaling.maxReplicas .Values.replicas | int -}}
{{- end -}}
