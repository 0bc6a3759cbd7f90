import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.List;

/** Calls as Java's own client does by default: it asks to change to HTTP/2 with every first request. */
class Caller {
    public static void main(String[] arguments) throws Exception {
        byte[] body = arguments[1].getBytes();
        List<BodyPublisher> ways = List.of(
                BodyPublishers.ofByteArray(body),
                BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body)));
        for (BodyPublisher way : ways) {
            HttpClient client = HttpClient.newHttpClient();
            for (int i = 0; i < 3; i++) {
                HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                        .header("Content-Type", "application/json")
                        .POST(way)
                        .build();
                var answer = client.send(request, BodyHandlers.ofString());
                System.out.println(answer.version() + " " + answer.statusCode() + " " + answer.body());
            }
        }
    }
}
