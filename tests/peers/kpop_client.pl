#!/usr/bin/perl
# A KPOP client by Perl's Authen::Krb5: kpop_client.pl PORT USER mutual|alone
# Prints what the server says; ends with 1 when sendauth is refused.
use strict;
use warnings;
use IO::Socket::INET;
use Authen::Krb5 qw(AP_OPTS_MUTUAL_REQUIRED KRB5_NT_SRV_HST);

my ($port, $user, $how) = @ARGV;
Authen::Krb5::init_context() or die Authen::Krb5::error();
my $cache = Authen::Krb5::cc_default() or die Authen::Krb5::error();
my $client = $cache->get_principal() or die Authen::Krb5::error();
my $server = Authen::Krb5::sname_to_principal('localhost', 'pop', KRB5_NT_SRV_HST) or die Authen::Krb5::error();
my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Proto => 'tcp', Timeout => 20) or die $!;
my $exchange = Authen::Krb5::AuthContext->new();
my $options = $how eq 'mutual' ? AP_OPTS_MUTUAL_REQUIRED : 0;
unless (Authen::Krb5::sendauth($exchange, $socket, 'KPOPV1.0', $client, $server, $options, '', undef, $cache)) {
    print 'sendauth: ', Authen::Krb5::error(), "\n";
    exit 1;
}

sub answer { my $line = <$socket>; die "the connection has ended\n" unless defined $line; print $line; return $line }
answer();
for my $command ("USER $user", 'PASS hej', 'STAT', 'RETR 1', 'DELE 1', 'QUIT') {
    print {$socket} "$command\r\n";
    my $status = answer();
    last unless $status =~ /^\+OK/;
    if ($command =~ /^RETR/) { 1 until answer() eq ".\r\n" }
}
