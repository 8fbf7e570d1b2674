{{/*
What values.schema.json cannot say: values that are possible each, and impossible together. Everything that is wrong is
told at once. popproxy itself checks config further, with line numbers, before it serves.
*/}}
{{- define "popproxy.check" -}}
{{- $wrong := list -}}
{{- range list "image" "listeners" "service" "http" "process" "times" "files" "replicas" -}}
{{- $wrong = concat $wrong (include (printf "popproxy.check.%s" .) $ | fromJsonArray) -}}
{{- end -}}
{{- if $wrong -}}
{{- fail (printf "these values cannot work:\n\n  * %s\n" (join "\n  * " $wrong)) -}}
{{- end -}}
{{- end -}}

{{- define "popproxy.check.image" -}}
{{- $wrong := list -}}
{{- if not .Values.image.repository -}}
{{- $wrong = append $wrong "image.repository is empty; build the image and say where you have pushed it: docker build -t REPOSITORY . in a clone of popproxy" -}}
{{- end -}}
{{- if not .Values.config.pools -}}
{{- $wrong = append $wrong "config.pools is missing; say which POP3 servers are behind, for example config: {pools: {main: {servers: [oldmail.example.com]}}}" -}}
{{- end -}}
{{- range $name, $pool := .Values.config.pools -}}
{{- if not (or .servers .srv) -}}
{{- $wrong = append $wrong (printf "config.pools.%s names no server; write servers: [oldmail.example.com], or srv with the domain of their SRV records" $name) -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{- define "popproxy.check.listeners" -}}
{{- $wrong := list -}}
{{- $ports := dict -}}
{{- if not .Values.config.listeners -}}
{{- $wrong = append $wrong "config.listeners is missing; leave it out to have the chart's, or name at least one" -}}
{{- end -}}
{{- range .Values.config.listeners -}}
{{- $listener := . -}}
{{- range .listen -}}
{{- $port := include "popproxy.port" . -}}
{{- if lt (int $port) 1024 -}}
{{- $wrong = append $wrong (printf "the listener %s listens on port %s, which popproxy without root may not; write \":1%s\" or another port above 1023: outside, the Service has the usual one" $listener.name $port (printf "%03d" (int $port))) -}}
{{- end -}}
{{- if regexMatch "^(127\\.|\\[::1\\]|localhost)" . -}}
{{- $wrong = append $wrong (printf "the listener %s listens on %s, where nobody outside its pod can connect; write \":%s\"" $listener.name . $port) -}}
{{- end -}}
{{- if hasKey $ports $port -}}
{{- $wrong = append $wrong (printf "%s and %s both listen on port %s; give each its own" (get $ports $port) $listener.name $port) -}}
{{- end -}}
{{- $_ := set $ports $port $listener.name -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{- define "popproxy.check.service" -}}
{{- $wrong := list -}}
{{- $names := list -}}
{{- $outside := dict -}}
{{- range include "popproxy.listeners" . | fromJsonArray -}}
{{- $names = append $names .name -}}
{{- $port := int .outside | toString -}}
{{- if hasKey $outside $port -}}
{{- $wrong = append $wrong (printf "the listeners %s and %s would both be port %s of the Service; give one of them another in service.ports" (get $outside $port) .name $port) -}}
{{- end -}}
{{- $_ := set $outside $port .name -}}
{{- end -}}
{{- range $name, $_ := .Values.service.ports -}}
{{- if not (has $name $names) -}}
{{- $wrong = append $wrong (printf "service.ports has a port for %s, but the listeners are %s" $name (join ", " $names)) -}}
{{- end -}}
{{- end -}}
{{- if ne .Values.service.type "LoadBalancer" -}}
{{- range $key := list "loadBalancerClass" "loadBalancerSourceRanges" -}}
{{- if get $.Values.service $key -}}
{{- $wrong = append $wrong (printf "service.%s is for type LoadBalancer, and service.type is %s; take one of them away (networkPolicy.clients limits who may connect to every type)" $key $.Values.service.type) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{- define "popproxy.check.http" -}}
{{- $wrong := list -}}
{{- $listen := include "popproxy.httpListen" . -}}
{{- if regexMatch "^(127\\.|\\[::1\\]|localhost)" $listen -}}
{{- $wrong = append $wrong (printf "config.http.listen is %s, where the kubelet cannot ask whether popproxy is well; write \":9110\"" $listen) -}}
{{- else -}}
{{- range .Values.config.listeners -}}
{{- $listener := . -}}
{{- range .listen -}}
{{- if eq (include "popproxy.port" .) (include "popproxy.port" $listen) -}}
{{- $wrong = append $wrong (printf "config.http.listen and the listener %s have the same port %s; give each its own" $listener.name (include "popproxy.port" .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{- define "popproxy.check.process" -}}
{{- $wrong := list -}}
{{- range $key := list "user" "group" -}}
{{- with get ($.Values.config.process | default dict) $key -}}
{{- $wrong = append $wrong (printf "config.process.%s is %s, but in its pod popproxy never is root and cannot become another user; leave it out" $key .) -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{- define "popproxy.check.times" -}}
{{- $wrong := list -}}
{{- $needed := add .Values.preStopSeconds (include "popproxy.drain" .) | int64 -}}
{{- if le (include "popproxy.gracePeriod" . | int64) $needed -}}
{{- $wrong = append $wrong (printf "terminationGracePeriodSeconds is %d, but a pod needs more than %d seconds to end: preStopSeconds (%d) and config.timeouts.drain (%s s); leave it out, or shorten these" (int64 .Values.terminationGracePeriodSeconds) $needed (int64 .Values.preStopSeconds) (include "popproxy.drain" .)) -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{/* Every path below /etc/popproxy must be in a volume, and what popproxy writes in a writable one. */}}
{{- define "popproxy.check.files" -}}
{{- $wrong := list -}}
{{- $config := toYaml .Values.config -}}
{{- $mounts := list -}}
{{- $missing := list -}}
{{- range .Values.extraVolumeMounts -}}{{- $mounts = append $mounts (printf "%s/" (trimSuffix "/" .mountPath)) -}}{{- end -}}
{{- range regexFindAll "/etc/popproxy/[^\\s\"',\\]}]+" $config -1 | uniq -}}
{{- $path := . -}}
{{- $mounted := false -}}
{{- range $mounts -}}{{- if hasPrefix . $path -}}{{- $mounted = true -}}{{- end -}}{{- end -}}
{{- $directory := index (splitList "/" $path) 3 -}}
{{- if $mounted -}}
{{- else if eq (len (splitList "/" $path)) 4 -}}
{{- $wrong = append $wrong (printf "config names %s, where no volume is; put it into a secret and name that in secrets, or into files, where it is %s without a directory" $path $directory) -}}
{{- else if eq $directory "config" -}}
{{- if not (hasKey $.Values.files (base $path)) -}}
{{- $wrong = append $wrong (printf "config names %s, but there is no %s in files" $path (base $path)) -}}
{{- end -}}
{{- else if and (not (get $.Values.secrets $directory)) (not (has $directory $missing)) -}}
{{- $missing = append $missing $directory -}}
{{- $make := eq $directory "tls" | ternary "kubectl create secret tls NAME --cert=FILE --key=FILE" (printf "kubectl create secret generic NAME --from-file=%s" (base $path)) -}}
{{- $wrong = append $wrong (printf "config names %s, but secrets.%s does not say which secret that is in; make one (%s) and say secrets.%s: NAME" $path $directory $make $directory) -}}
{{- end -}}
{{- end -}}
{{- range tuple (list "audit.file" (get (.Values.config.audit | default dict) "file")) (list "kerberos.replay_cache" (get (.Values.config.kerberos | default dict) "replay_cache")) (list "process.state_directory" (get (.Values.config.process | default dict) "state_directory")) -}}
{{- $key := first . -}}
{{- with last . -}}
{{- $path := . -}}
{{- $writable := hasPrefix "/var/lib/popproxy/" (printf "%s/" $path) -}}
{{- range $mounts -}}{{- if hasPrefix . (printf "%s/" $path) -}}{{- $writable = true -}}{{- end -}}{{- end -}}
{{- if not $writable -}}
{{- $wrong = append $wrong (printf "config.%s is %s, which popproxy cannot write to in its pod; write a path below /var/lib/popproxy, or mount a volume there with extraVolumes and extraVolumeMounts" $key $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $journal := false -}}
{{- range $mounts -}}{{- if hasPrefix . "/run/systemd/journal/socket/" -}}{{- $journal = true -}}{{- end -}}{{- end -}}
{{- if and (.Values.config.audit | default dict).journald (not $journal) -}}
{{- $wrong = append $wrong "config.audit.journald is on, but in a pod there is no journal; leave it out: standard output goes where the pods' logs go (audit.stdout, beside a file), and audit.syslog elsewhere" -}}
{{- end -}}
{{- with (.Values.config.kerberos | default dict).replay_cache -}}
{{- if eq (trimSuffix "/" .) "/var/lib/popproxy" -}}
{{- $wrong = append $wrong "config.kerberos.replay_cache must be a directory of its own, because nothing else may write there; write /var/lib/popproxy/replay" -}}
{{- end -}}
{{- end -}}
{{- with get (.Values.config.control | default dict) "socket" -}}
{{- if not (hasPrefix "/run/popproxy/" .) -}}
{{- $wrong = append $wrong (printf "config.control.socket is %s, which popproxy cannot write to in its pod; leave it out, or write a path below /run/popproxy" .) -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := .Values.files -}}
{{- if has $name (list "popproxy.yaml" "krb5.conf") -}}
{{- $wrong = append $wrong (printf "files has a %s, which the chart writes itself: from %s" $name (eq $name "krb5.conf" | ternary "krb5Conf" "config")) -}}
{{- end -}}
{{- end -}}
{{- if hasKey .Values.secrets "config" -}}
{{- $wrong = append $wrong "secrets.config would stand where popproxy.yaml is; give the secret another name there" -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}

{{- define "popproxy.check.replicas" -}}
{{- $wrong := list -}}
{{- $scaling := .Values.autoscaling -}}
{{- $least := $scaling.enabled | ternary $scaling.minReplicas .Values.replicas | int -}}
{{- if $scaling.enabled -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- $wrong = append $wrong (printf "autoscaling.minReplicas is %d, more than maxReplicas, %d" (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- if not (or $scaling.cpu $scaling.sessions) -}}
{{- $wrong = append $wrong "autoscaling is on, but looks at nothing; give cpu or sessions a number" -}}
{{- end -}}
{{- if and $scaling.cpu (not (get (.Values.resources.requests | default dict) "cpu")) -}}
{{- $wrong = append $wrong "autoscaling.cpu is per cent of what is requested, and resources.requests.cpu is missing" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.config.kerberos (not .Values.config.shared_state) (gt (include "popproxy.most" . | int) 1) -}}
{{- $wrong = append $wrong (printf "there may be %s replicas, and none would notice that a Kerberos ticket has been used at another; say in config.shared_state where Redis is, or replicas: 1" (include "popproxy.most" .)) -}}
{{- end -}}
{{- with .Values.podDisruptionBudget -}}
{{- if .enabled -}}
{{- $both := not (or (kindIs "invalid" .maxUnavailable) (kindIs "invalid" .minAvailable)) -}}
{{- if $both -}}
{{- $wrong = append $wrong "podDisruptionBudget has both maxUnavailable and minAvailable, and Kubernetes takes only one; set the other to null" -}}
{{- else if and (kindIs "invalid" .maxUnavailable) (kindIs "invalid" .minAvailable) -}}
{{- $wrong = append $wrong "podDisruptionBudget is on, but has neither maxUnavailable nor minAvailable" -}}
{{- else if and (not (kindIs "string" .minAvailable)) (not (kindIs "invalid" .minAvailable)) (ge (int .minAvailable) $least) -}}
{{- $wrong = append $wrong (printf "podDisruptionBudget.minAvailable is %d of %d replicas, so that no node could ever be emptied; write less, or maxUnavailable: 1" (int .minAvailable) $least) -}}
{{- else if or (and (kindIs "string" .maxUnavailable) (eq .maxUnavailable "0%")) (and (not (kindIs "string" .maxUnavailable)) (not (kindIs "invalid" .maxUnavailable)) (eq (int .maxUnavailable) 0)) -}}
{{- $wrong = append $wrong "podDisruptionBudget.maxUnavailable is 0, so that no node could ever be emptied; write 1" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $wrong -}}
{{- end -}}
